// One problem: rounds as columns, solutions as cards, lines from a pool to what was made of it, and the way an answer was lost.
import type { ComponentChildren } from "preact";
import { useEffect, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import { diff, similarity } from "./diff";
import { line, queryOf } from "./rollouts";
import { go, link, type Route } from "./route";
import { COLUMNS, csv, save } from "./save";
import type { Source } from "./source";
import { number, oneLine, Text, visible } from "./text";
import type { Card, CardGroup, RunHead, Trace } from "./types";
import { fileLabel } from "./types";

const SIGN = { correct: "✓", incorrect: "✗", unscored: "?", failed: "—" };
const WORD = { correct: "right", incorrect: "wrong", unscored: "unscored", failed: "failed" };
const kindOf = (card: Card) => (card.failure !== undefined ? "failed" : card.verdict);
const idOf = (round: number, card: Card, place: number) => `${round}.${card.index ?? `f${place}`}`;
const solutions = (groups: CardGroup[] | undefined) => (groups ?? []).flatMap((group) => group.outputs).filter((card) => card.index !== null);

/** Answers of a round with their votes, the most frequent first. */
function Clusters({ groups }: { groups: CardGroup[] }) {
  const votes = new Map<string, { count: number; kind: string }>();
  for (const card of solutions(groups)) {
    const answer = card.answer ?? "no answer", known = votes.get(answer);
    if (known) known.count++;
    else votes.set(answer, { count: 1, kind: kindOf(card) });
  }
  const all = [...votes].sort((a, b) => b[1].count - a[1].count), most = all[0]?.[1].count ?? 1;
  return <ul class="clusters" aria-label="Answers and votes">{all.slice(0, 6).map(([answer, { count, kind }]) => <li key={answer} class={WORD[kind as keyof typeof WORD]}>
    <span class="vote" style={{ width: `${(4 * count) / most}rem` }} /><b>{count}</b> {SIGN[kind as keyof typeof SIGN]} {oneLine(answer, 36)}</li>)}
    {all.length > 6 && <li class="soft">and {all.length - 6} other answers</li>}</ul>;
}

function Difference({ card, pool }: { card: Card; pool: Card[] }) {
  const near = useMemo(() => pool.map((one) => [similarity(one.text, card.text), one] as const).sort((a, b) => b[0] - a[0])[0], [card, pool]);
  const pieces = useMemo(() => near ? diff(near[1].text, card.text) : [], [near]);
  if (!near) return null;
  return <div class="diff"><p class="soft">Nearest in its pool: #{near[1].index} {SIGN[kindOf(near[1])]} {WORD[kindOf(near[1])]}, {Math.round(100 * near[0])}% of the words in common</p>
    <div class="text">{pieces.map((piece, i) => piece.kind === "same" ? <span key={i}>{visible(piece.text)}</span>
      : piece.kind === "added" ? <ins key={i}>{visible(piece.text)}</ins> : <del key={i}>{visible(piece.text)}</del>)}</div></div>;
}

function CardView({ card, id, pool, open, shown, raw, toggle, point, href }: {
  card: Card; id: string; pool: Card[]; open: boolean; shown: string; raw: boolean; toggle: () => void; point: (on: boolean) => void; href: string;
}) {
  const kind = kindOf(card), [different, setDifferent] = useState(false);
  const facts = [card.tokens !== null && card.tokens !== undefined ? `${number(card.tokens)} tokens` : "", card.reward !== null && card.reward !== undefined ? `reward ${number(card.reward)}` : "",
    card.credit !== null && card.credit !== undefined ? `credit ${card.credit > 0 ? "+" : ""}${number(card.credit)}` : "",
    card.finish === "length" ? "truncated" : card.finish === "cancelled" ? "cancelled" : ""].filter(Boolean);
  return <article class={`card ${WORD[kind]} ${shown}`} data-card={id} onMouseEnter={() => point(true)} onMouseLeave={() => point(false)}>
    <button type="button" class="head" aria-expanded={open} onClick={toggle} onFocus={() => point(true)} onBlur={() => point(false)}>
      <span class="sign">{SIGN[kind]}</span> <b>{card.index === null ? "failed" : `#${card.index}`}</b> <span class="sr">{WORD[kind]}</span>
      {card.answer !== null && card.answer !== undefined && <span class="answer"> {oneLine(card.answer, 48)}</span>}
      <span class="facts">{facts.join(" · ")}</span>
    </button>
    {card.failure !== undefined ? <p>{visible(card.failure)}</p> : !open ? <p class="snippet">{oneLine(card.text, 110)}</p> : <div class="body">
      {card.reason && <p class="soft">{visible(card.reason)}</p>}
      {card.thinking && <details><summary>Thinking</summary><Text text={card.thinking} raw={raw} /></details>}
      <Text text={card.text} raw={raw} />
      <p class="tools">{pool.length > 0 && <button type="button" aria-pressed={different} onClick={() => setDifferent(!different)}>Compare with the nearest candidate</button>}
        <a href={href}>link</a></p>
      {different && <Difference card={card} pool={pool} />}
    </div>}
  </article>;
}

interface Path { d: string; from: string; to: string }

/** Lines from the members of each pool to the solutions made of it. */
function useLines(trace: Trace, open: string): [preact.RefObject<HTMLDivElement | null>, Path[]] {
  const place = useRef<HTMLDivElement>(null), [paths, setPaths] = useState<Path[]>([]);
  const draw = () => {
    const root = place.current;
    if (!root) return;
    const zero = root.getBoundingClientRect(), cards = new Map([...root.querySelectorAll<HTMLElement>("[data-card]")].map((el) => [el.dataset.card!, el.getBoundingClientRect()]));
    const out: Path[] = [];
    trace.rounds.forEach((groups, t) => groups.forEach((group) => group.pool.forEach((member) => group.outputs.forEach((card, place_) => {
      const [a, b] = [cards.get(`${t - 1}.${member}`), cards.get(idOf(t, card, place_))];
      if (!a || !b || b.left < a.right) return;
      const [x1, y1, x2, y2] = [a.right - zero.left, a.top + 16 - zero.top, b.left - zero.left, b.top + 16 - zero.top], middle = (x1 + x2) / 2;
      out.push({ d: `M${x1} ${y1}C${middle} ${y1} ${middle} ${y2} ${x2} ${y2}`, from: `${t - 1}.${member}`, to: idOf(t, card, place_) });
    }))));
    setPaths(out.slice(0, 4000));
  };
  useLayoutEffect(draw, [trace, open]);
  useEffect(() => {
    const watch = new ResizeObserver(draw);
    if (place.current) watch.observe(place.current);
    return () => watch.disconnect();
  }, [trace]);
  return [place, paths];
}

function Rounds({ trace, route, base }: { trace: Trace; route: Route; base: Route }) {
  const [open, setOpen] = useState<Set<string>>(new Set(route.card ? [route.card] : [])), [at, setAt] = useState(""), [raw, setRaw] = useState(false);
  const [place, paths] = useLines(trace, [...open].join());
  useEffect(() => {
    if (!route.card) return;
    setOpen((some) => new Set([...some, route.card!]));
    requestAnimationFrame(() => place.current?.querySelector(`[data-card="${CSS.escape(route.card!)}"] .head`)?.scrollIntoView({ block: "center" }));
  }, [route.card, trace]);
  const near = useMemo(() => new Set(paths.filter((p) => p.from === at || p.to === at).flatMap((p) => [p.from, p.to])), [at, paths]);
  const move = (event: KeyboardEvent) => {
    const button = (event.target as HTMLElement).closest<HTMLElement>(".head");
    if (!button || !event.key.startsWith("Arrow")) return;
    const columns = [...place.current!.querySelectorAll<HTMLElement>(".column")].map((column) => [...column.querySelectorAll<HTMLElement>(".head")]);
    const column = columns.findIndex((some) => some.includes(button)), row = columns[column]!.indexOf(button);
    const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key]!;
    const aim = columns[column + dx!]?.[Math.min(row + dy!, (columns[column + dx!]?.length ?? 1) - 1)];
    if (aim) { event.preventDefault(); aim.focus(); }
  };
  return <>
    <div class="bar"><button type="button" aria-pressed={raw} onClick={() => setRaw(!raw)}>Text as it is</button>
      <button type="button" onClick={() => setOpen(new Set(trace.rounds.flatMap((groups, t) => groups.flatMap((g) => g.outputs.map((card, i) => idOf(t, card, i))))))}>Open all</button>
      <button type="button" onClick={() => setOpen(new Set())}>Close all</button><span class="soft">Arrow keys move among cards, Enter opens one. A card that is pointed at shows its pool.</span></div>
    <div class="rounds" ref={place} onKeyDown={move}>
      <svg class="lines" aria-hidden="true">{paths.map((p, i) => <path key={i} d={p.d} class={p.from === at || p.to === at ? "on" : ""} data-from={p.from} data-to={p.to} />)}</svg>
      {trace.rounds.map((groups, t) => {
        const some = solutions(groups), scored = some.filter((card) => card.verdict !== "unscored"), right = scored.filter((card) => card.verdict === "correct").length;
        return <section class="column" key={t} aria-label={t ? `Round ${t}` : "Candidates"}>
          <h3>{t ? `Round ${t}: aggregations` : "Candidates"} <span class="soft">{right} of {scored.length} right</span></h3>
          <Clusters groups={groups} />
          {groups.map((group, g) => {
            const pool = group.pool.map((member) => solutions(trace.rounds[t - 1])[member]).filter((card): card is Card => !!card);
            return <div class="group" key={g}>
              {t > 0 && <p class="soft">made of {group.pool.map((member) => `#${member}`).join(" ") || "nothing"}{group.reductions.length ? ` (reduced: ${visible(group.reductions.join(", "))})` : ""}</p>}
              <details class="prompt"><summary>Prompt{group.prompt_tokens ? `, ${number(group.prompt_tokens)} tokens` : ""}{group.chat ? ", one chat message" : ""}</summary><Text text={group.prompt} raw /></details>
              {group.outputs.map((card, i) => {
                const id = idOf(t, card, i);
                return <CardView key={id} card={card} id={id} pool={pool} open={open.has(id)} raw={raw} shown={at && at !== id ? (near.has(id) ? "near" : "") : ""}
                  toggle={() => setOpen((now) => { const next = new Set(now); if (!next.delete(id)) next.add(id); return next; })}
                  point={(on) => setAt(on ? id : "")} href={link({ ...base, card: id })} />;
              })}</div>;
          })}</section>;
      })}
    </div></>;
}

export function Problem({ source, heads, route }: { source: Source; heads: RunHead[]; route: Route }) {
  const [trace, setTrace] = useState<Trace>(), [other, setOther] = useState<Trace>(), [error, setError] = useState(""), [missing, setMissing] = useState("");
  const { run = "", file = "" } = route, n = Number(route.n ?? 0);
  useEffect(() => {
    let current = true;
    setError("");
    source.traces(run, file, [n]).then((some) => { if (current) setTrace(some[0]); }, (e: Error) => { if (current) { setTrace(undefined); setError(e.message); } });
    return () => { current = false; };
  }, [run, file, n]);
  useEffect(() => {
    let current = true;
    setOther(undefined);
    setMissing("");
    if (!route.beside || !trace) return;
    const [key, name] = JSON.parse(route.beside) as [string, string];
    source.find(key, name, trace.problem, Number(trace.extra.repeat ?? 0)).then(async (found) => {
      if (!current) return;
      if (found === null) setMissing("That evaluation does not hold this problem (or this file's sample of it does not).");
      else setOther((await source.traces(key, name, [found]))[0]);
    }, (e: Error) => { if (current) setMissing(e.message); });
    return () => { current = false; };
  }, [route.beside, trace]);
  const near = async (step: number) => {
    const list = { ...queryOf(route), offset: 0, limit: 500 }, rows = (await source.problems(run, file, list)).rows, at = rows.findIndex((row) => row.n === n);
    const aim = rows[at + step];
    if (aim) go({ ...route, n: aim.n, card: "" });
  };
  useLayoutEffect(() => {
    const keys = (event: KeyboardEvent) => {
      if ((event.target as HTMLElement).closest("input, select, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key === "]" || event.key === "[") void near(event.key === "]" ? 1 : -1);
    };
    addEventListener("keydown", keys);
    return () => removeEventListener("keydown", keys);
  });
  const choices = heads.flatMap((head) => Object.keys(head.files ?? {}).filter((name) => name !== "traces" && !(head.key === run && name === file)).map((name) => [head.key, name]));
  const saved = (how: "jsonl" | "csv") => trace && save(`${run}-${trace.problem}.${how}`, [how === "csv" ? csv([COLUMNS]) : "", line(how, run, file, trace)], "text/plain");
  const { card: _, n: __, beside: ___, ...list } = route;
  return <section aria-label="Problem">
    <nav class="bar"><a href={link({ ...list, view: "rollouts" })}>← all problems</a>
      <button type="button" onClick={() => void near(-1)}>previous ( [ )</button><button type="button" onClick={() => void near(1)}>next ( ] )</button>
      <label>Beside <select id="beside" value={route.beside ?? ""} onChange={(e) => go({ ...route, beside: e.currentTarget.value }, true)}><option value="">nothing</option>
        {choices.map(([key, name]) => <option key={`${key} ${name}`} value={JSON.stringify([key, name])}>{visible(heads.length > 1 ? `${key}, ${fileLabel(name!)}` : fileLabel(name!))}</option>)}</select></label>
      <button type="button" onClick={() => saved("jsonl")}>Save JSONL</button><button type="button" onClick={() => saved("csv")}>Save CSV</button></nav>
    {error && <p class="notice">{visible(error)}</p>}
    {trace && <>
      <h2>{visible(trace.problem)} <span class="soft">{visible(run)}, {visible(fileLabel(file))}{trace.extra.step ? `, step ${visible(String(trace.extra.step))}` : ""}; {visible(trace.plan)}</span></h2>
      {trace.failure && <p class="notice">{visible(trace.failure)}</p>}
      <Text text={trace.text} />
      {trace.answer !== null && <p class="soft">Reference: {oneLine(typeof trace.answer === "string" ? trace.answer : JSON.stringify(trace.answer), 300)}</p>}
      <Side title=""><Rounds key={`${run} ${file} ${n}`} trace={trace} route={route} base={route} /></Side>
      {missing && <p class="notice">{missing}</p>}
      {other && <Side title={visible((JSON.parse(route.beside!) as string[]).map(fileLabel).join(", "))}><Rounds key={route.beside} trace={other} route={{}} base={route} /></Side>}
    </>}
  </section>;
}

function Side({ title, children }: { title: string; children: ComponentChildren }) {
  return <div class="side">{title && <h2>Beside: {title}</h2>}{children}</div>;
}
