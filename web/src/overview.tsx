// The first screen: did it learn, does aggregation pay, is something wrong? Below it every curve, and the tables.
import { useState } from "preact/hooks";
import { Chart, color, smooth, type About, type Line } from "./charts";
import { link } from "./route";
import { number, percent, visible } from "./text";
import type { Evaluation, Interval, Metric, Run } from "./types";
import { fileLabel, FILES } from "./types";

const pick = (rows: Metric[], key: string) => rows.filter((row) => Number.isFinite(row[key] as number));
const mean = (values: number[]) => values.reduce((a, b) => a + b, 0) / values.length;
const cell = (one: Evaluation | undefined, round: number, name: string) => one?.rounds[round]?.[name] as Interval | null | undefined;
const between = (one: Interval | null | undefined) => one ? `${percent(one.mean)} [${percent(one.low)}, ${percent(one.high)}]` : "-";
const main = (run: Run): Evaluation | undefined => run.evaluations.eval_after ?? run.evaluations.eval ?? run.evaluations.eval_before;

/** First and last tenth of a metric, at least one step each. */
function ends(rows: Metric[], key: string): [number, number] | null {
  const known = pick(rows, key).map((row) => row[key] as number), some = Math.max(1, Math.floor(known.length / 10));
  return known.length ? [mean(known.slice(0, some)), mean(known.slice(-some))] : null;
}

function Learned({ run }: { run: Run }) {
  const stages = [["candidates", "generate/reward"], ["aggregations", "aggregate/reward"]] as const;
  const found = stages.map(([who, key]) => [who, ends(run.metrics, key)] as const).filter(([, pair]) => pair);
  const { eval_before: before, eval_after: after } = run.evaluations, last = (after?.rounds.length ?? 0) - 1;
  const [was, is] = [cell(before, last, "pass_at_1"), cell(after, last, "pass_at_1")];
  const verdict = !was || !is || was.low === null || is.low === null ? "" : is.low > was.high! ? "yes, on held-out problems"
    : is.high! < was.low ? "no, it got worse" : "not shown: the intervals overlap";
  return <>
    {verdict && <p class="answer">{verdict}</p>}
    {found.map(([who, pair]) => <p key={who}>Reward of {who}: {number(pair![0])} → <b>{number(pair![1])}</b></p>)}
    {before && after && <p>Held out, candidates: {percent(cell(before, 0, "pass_at_1")?.mean)} → <b>{percent(cell(after, 0, "pass_at_1")?.mean)}</b>,
      after {last} rounds: {percent(cell(before, last, "pass_at_1")?.mean)} → <b>{percent(cell(after, last, "pass_at_1")?.mean)}</b></p>}
    {!found.length && <p class="soft">No training step is recorded.</p>}
  </>;
}

function Pays({ run }: { run: Run }) {
  const found = main(run);
  if (!found) return <p class="soft">{run.pending?.length ? "Being computed…" : "No evaluation is recorded."}</p>;
  const last = found.rounds.length - 1;
  const gain = (found.rounds[last]?.minus_first as Record<string, Interval | null> | undefined)?.pass_at_1;
  const verdict = !gain || gain.low === null ? "not known" : gain.low > 0 ? "yes" : gain.high! < 0 ? "no, it harms" : "not shown";
  return <>
    {last > 0 && <p class="answer">{verdict}{gain && <>: {gain.mean > 0 ? "+" : ""}{percent(gain.mean)} [{percent(gain.low)}, {percent(gain.high)}]</>}</p>}
    <p>pass@1 {between(cell(found, 0, "pass_at_1"))}{last > 0 && <> → <b>{between(cell(found, last, "pass_at_1"))}</b> after {last} rounds</>}</p>
    <p>Voting among {found.k} first candidates {between(cell(found, 0, "maj_at_k"))}; their pass@{found.k} {between(cell(found, 0, "pass_at_k"))}</p>
    <p class="soft">{found.label}, {found.problems} problems. {found.note}</p>
  </>;
}

function Wrong({ run }: { run: Run }) {
  if (!run.warnings.length) return <p class="answer">nothing found</p>;
  return <ul class="warnings">{run.warnings.map((one) =>
    <li key={one.name + one.text}><a href={link({ view: "overview", about: one.name })}>{one.name}</a>: {visible(one.text)}</li>)}</ul>;
}

export function Summary({ run, hue }: { run: Run; hue: string }) {
  const files = Object.keys(run.files ?? run.sources ?? {});
  return (
    <section class="run" aria-label={visible(run.key)}>
      <h2><i class="dot" style={{ background: hue }} />{visible(run.key)}</h2>
      <p class="soft">{visible([run.method, run.model, run.task].filter(Boolean).join(" · "))} · {run.steps}{run.planned ? ` of ${run.planned}` : ""} steps
        {run.planned ? <> <progress max={run.planned} value={run.steps} aria-label="steps" /></> : null}
        {files.map((file) => <> · <a key={file} href={link({ view: "rollouts", run: run.key, file })}>rollouts {visible(fileLabel(file))}</a></>)}</p>
      <div class="three">
        <div><h3>Did it learn?</h3><Learned run={run} /></div>
        <div><h3>Does aggregation pay?</h3><Pays run={run} /></div>
        <div><h3>Is something wrong?</h3><Wrong run={run} /></div>
      </div>
    </section>
  );
}

type Panel = [About, [string, string][]];
const SMALL: Panel[] = [
  [{ title: "pass@k of candidates", x: "step", zero: true }, [["pass@k", "generate/pass_at_k"], ["pools with a right one", "pool/has_correct"]]],
  [{ title: "Groups without credit", x: "step", zero: true }, [["candidates", "generate/zero_credit"], ["aggregations", "aggregate/zero_credit"]]],
  [{ title: "Truncated", x: "step", zero: true }, [["candidates", "generate/truncated"], ["aggregations", "aggregate/truncated"]]],
  [{ title: "Gradient norm", x: "step", zero: true }, [["all", "grad_norm"]]],
  [{ title: "Tokens a step", x: "step", zero: true }, [["tokens", "tokens"]]],
  [{ title: "KL of trainer to sampler", x: "step" }, [["KL", "mismatch_kl"]]],
  [{ title: "Learning rate", x: "step", zero: true }, [["rate", "lr"]]],
  [{ title: "Loss", x: "step" }, [["loss", "loss"]]],
];
/** Measured every few steps, where that is asked for: training/balance.py. */
const STAGES: Panel[] = [
  [{ title: "Gradient norm of each stage", x: "step", zero: true, note: "Neither should be many times the other." },
    [["candidates", "generate/grad_norm"], ["aggregations", "aggregate/grad_norm"]]],
  [{ title: "Cosine of gradients", x: "step", note: "Well below 0, one undoes what the other does." },
    [["candidates and aggregations", "stage_cosine"], ["candidates under pass@k and pass@1", "generate/credit_cosine"]]],
  [{ title: "Balance factor", x: "step", zero: true, note: "Scales candidates' credit; it should be steady." }, [["factor", "balance"]]],
];
const FEW = 6;  // lines with a band each, with the raw line under a smooth one, or with lines beside them
const DASHES: (number[] | undefined)[] = [undefined, [6, 4], [2, 3]];

/** Curves of one metric, of each run or of each method with the band from its lowest seed to its highest. */
function trained(groups: Group[], keys: [string, string][], share: number): Line[] {
  return groups.flatMap((group) => keys.flatMap(([name, key], i): Line[] => {
    const label = [group.label, keys.length > 1 ? name : ""].filter(Boolean).join(", ") || name, dash = DASHES[i % 3];
    const own = group.runs.map((run) => pick(run.metrics, key)).filter((rows) => rows.length);
    if (own.length === 1) {
      const x = own[0]!.map((row) => row.step), y = own[0]!.map((row) => row[key] as number);
      const raw: Line[] = share && groups.length <= FEW ? [{ label: `${label}, raw`, color: group.hue, x, y, faint: true }] : [];
      return [...raw, { label, color: group.hue, dash, x, y: share ? smooth(y, share) : y }];
    }
    const seeds = own.map((rows) => new Map(rows.map((row, j) => [row.step, smooth(rows.map((r) => r[key] as number), share)[j]!])));
    const x = [...(seeds[0]?.keys() ?? [])].filter((step) => seeds.every((seed) => seed.has(step)));
    const at = x.map((step) => seeds.map((seed) => seed.get(step)!));
    return x.length ? [{ label, color: group.hue, dash, x, y: at.map(mean), low: at.map((v) => Math.min(...v)), high: at.map((v) => Math.max(...v)) }] : [];
  }));
}

/** A measure by round (or tokens) of each run with its interval, or of each method: the mean over its runs, from the lowest to the highest. */
function measured(groups: Group[], name: string, scale: number, against = "round"): Line[] {
  return groups.flatMap((group) => Object.keys(FILES).sort().flatMap((file): Line[] => {
    const own = group.runs.map((run) => run.evaluations[file]).filter((one): one is Evaluation => !!one);
    const rounds = own.length ? [...Array(Math.min(...own.map((one) => one.rounds.length))).keys()] : [];
    const x = against === "round" ? rounds : rounds.map((t) => mean(own.map((one) => cell(one, t, "generated_so_far")?.mean ?? NaN)));
    if (!rounds.length || x.some((value) => !Number.isFinite(value))) return [];
    const cells = rounds.map((t) => own.map((one) => cell(one, t, name)).filter((c): c is Interval => !!c));
    const part = (of: (some: Interval[]) => number | null) => cells.map((some) => {
      const value = some.length === own.length ? of(some) : null;
      return value === null ? null : scale * value;
    });
    const ends = own.length === 1 ? { low: part(([c]) => c!.low), high: part(([c]) => c!.high) }
      : { low: part((some) => Math.min(...some.map((c) => c.mean))), high: part((some) => Math.max(...some.map((c) => c.mean))) };
    return [{ label: [group.label, FILES[file]].filter(Boolean).join(" "), color: group.hue, dash: file === "eval_before" ? [6, 4] : undefined,
      points: true, x, y: part((some) => mean(some.map((c) => c.mean))), ...(groups.length > FEW ? {} : ends) }];
  }));
}

/** Accuracy, and where runs are few and apart what it is to be compared with: a vote, and the first round's pass@k. */
function byRound(groups: Group[], against: string): Line[] {
  const beside = groups.filter(({ runs }) => groups.length <= FEW && runs.length === 1).flatMap(({ label, hue, runs: [run] }): Line[] => {
    const one = main(run!), tokens = cell(one, 0, "tokens")?.mean;
    if (!one) return [];
    const x = one.rounds.map((round) => round.round), flat = (c: Interval | null | undefined) => x.map(() => (c ? 100 * c.mean : null));
    const named = (what: string) => [label, what].filter(Boolean).join(" "), votes = one.votes.filter(([, c]) => c);
    if (against === "round") return [
      { label: named(`voting among ${one.k}`), color: hue, dash: [2, 3], x, y: flat(cell(one, 0, "maj_at_k")) },
      { label: named(`first pass@${one.k}`), color: hue, dash: [10, 3, 2, 3], x, y: flat(cell(one, 0, "pass_at_k")) }];
    return tokens ? [{ label: named("voting among n"), color: hue, dash: [2, 3], points: true,
      x: votes.map(([n]) => n * tokens), y: votes.map(([, c]) => 100 * c!.mean) }] : [];
  });
  return [...measured(groups, "pass_at_1", 100, against), ...beside];
}

/** Held-out pass@1 of the first and the last round while training. */
function heldOut(runs: Run[], hues: string[]): Line[] {
  return runs.filter((run) => run.evals?.length).flatMap((run) => [0, run.evals[0]!.rounds.length - 1].filter((t, i, all) => all.indexOf(t) === i).map((t): Line => {
    const cells = run.evals.map((row) => row.rounds[t]?.pass_at_1 as Interval | null | undefined);
    const part = (end: keyof Interval) => cells.map((c) => (c && c[end] !== null ? 100 * (c[end] as number) : null));
    return { label: [runs.length > 1 ? run.key : "", `round ${t}`].filter(Boolean).join(", "), color: hues[runs.indexOf(run)]!, dash: t ? undefined : [6, 4],
      points: true, x: run.evals.map((row) => row.step), y: part("mean"), low: part("low"), high: part("high") };
  }));
}

/** Seconds of a step as lines that stand on each other. */
function timeline(run: Run): Line[] {
  const parts = ["generate", "both", "aggregate", "grade", "update", "publish", "idle"].map((name) => `seconds/${name}`);
  const shown = parts.filter((key) => run.metrics.some((row) => row[key])), x = run.metrics.map((row) => row.step);
  let under = x.map(() => 0);
  return shown.map((key, i) => {
    const low = under, y = run.metrics.map((row, j) => low[j]! + (Number(row[key]) || 0));
    under = y;
    return { label: key.replace("seconds/", "… and "), color: color(i), x, y, low, high: y };
  });
}

export interface Group { label: string; hue: string; runs: Run[] }

export function Overview({ runs, hues, theme, meanings, about }: {
  runs: Run[]; hues: string[]; theme: string; meanings: Record<string, string>; about: string;
}) {
  const [share, setShare] = useState(0.1), [against, setAgainst] = useState("round"), [asked, setSeeds] = useState<boolean>();
  const seeds = asked ?? runs.length > FEW;
  const methods = [...new Set(runs.map((run) => run.method))];
  const groups: Group[] = seeds ? methods.map((label, i) => ({ label, hue: color(i), runs: runs.filter((run) => run.method === label) }))
    : runs.map((run, i) => ({ label: runs.length > 1 ? run.key : "", hue: hues[i]!, runs: [run] }));
  const trains = runs.some((run) => run.metrics.length), names = Object.keys(meanings);
  const drawn = (panels: Panel[], points: boolean) => panels.flatMap(([what, keys]) => {
    const lines = trained(groups, keys, share).map((line) => ({ ...line, points }));
    return lines.length ? [<Chart key={what.title} theme={theme} lines={lines} about={{ ...what, height: 180 }} />] : [];
  });
  const stages = drawn(STAGES, true);
  return <>
    {runs.map((run, i) => <Summary key={run.key} run={run} hue={hues[i]!} />)}
    <div class="bar" role="group" aria-label="Curves">
      <label>Smoothing <input type="range" min="0" max="0.4" step="0.05" value={share} onInput={(e) => setShare(Number(e.currentTarget.value))} /></label>
      <label>Accuracy by <select value={against} onChange={(e) => setAgainst(e.currentTarget.value)}>
        <option value="round">round</option><option value="tokens">tokens generated</option></select></label>
      {runs.length > 1 && <label><input type="checkbox" checked={seeds} onChange={(e) => setSeeds(e.currentTarget.checked)} /> one line a method, band over its runs</label>}
      <span class="soft">Drag to zoom, double click to see all.</span>
    </div>
    <div class="grid two">
      {trains && <Chart theme={theme} about={{ title: "Mean reward in training", x: "step", zero: true }}
        lines={trained(groups, [["aggregations", "aggregate/reward"], ["candidates", "generate/reward"]], share)} />}
      <Chart theme={theme} lines={byRound(groups, against)} about={{ title: against === "round" ? "Accuracy by round (pass@1, %)" : "Accuracy by tokens (pass@1, %)",
        x: against === "round" ? "round (0: candidates)" : "tokens generated a problem, all rounds so far", whole: against === "round", logX: against !== "round" }} />
    </div>
    <h2>Diversity and length, by round</h2>
    <div class="grid">
      {([["Distinct answers in a pool", "distinct_answers", 1], ["Recovery: all wrong to right (%)", "recovery", 100], ["Destruction: right in the pool, then wrong (%)", "destruction", 100],
        ["Copied from a member (%)", "copy_rate", 100], ["Tokens a solution", "tokens", 1], ["Truncated (%)", "truncated", 100]] as const).map(([title, key, scale]) =>
        <Chart key={key} theme={theme} lines={measured(groups, key, scale)} about={{ title, x: "round", zero: true, whole: true, height: 180 }} />)}
    </div>
    {trains && <><h2>Training</h2><div class="grid">
      {runs.some((run) => run.evals?.length) && <Chart theme={theme} lines={heldOut(runs, hues)} about={{ title: "Held-out accuracy over training (pass@1, %)", x: "step", zero: true, height: 180 }} />}
      {drawn(SMALL, false)}
      {runs.slice(0, 4).filter((run) => run.metrics.length).map((run) =>
        <Chart key={`time ${run.key}`} theme={theme} lines={timeline(run)} about={{ title: `Seconds of a step${runs.length > 1 ? `, ${run.key}` : ""}`, x: "step", zero: true, height: 180 }} />)}
    </div></>}
    {stages.length > 0 && <section aria-label="Gradients of the stages"><h2>Gradients of the stages</h2><div class="grid">{stages}</div></section>}
    {runs.filter((run) => run.strategies?.sheets).map((run) => <Compared key={run.key} run={run} theme={theme} titled={runs.length > 1} />)}
    {runs.map((run) => <Tables key={run.key} run={run} titled={runs.length > 1} />)}
    <h2 id="meanings">What the warnings mean</h2>
    <dl>{names.map((name) => <div key={name} class={name === about ? "aim" : ""} tabIndex={-1}><dt id={`about-${name.replace(/ /g, "-")}`}>{name}</dt><dd>{meanings[name]}</dd></div>)}</dl>
  </>;
}

/** Strategies: accuracy over all tokens, a vote's curve among them, so that what stands above it beats a vote at equal tokens. */
function Compared({ run, theme, titled }: { run: Run; theme: string; titled: boolean }) {
  const { strategies = {}, votes = [], sheets = [], notes = [], partial } = run.strategies!;
  const line = (label: string, i: number, points: [number, Interval | null][]): Line => {
    const at = (end: keyof Interval) => points.map(([, c]) => (c && c[end] !== null ? 100 * (c[end] as number) : null));
    return { label, color: color(i), points: true, x: points.map(([tokens]) => tokens), y: at("mean"), low: at("low"), high: at("high") };
  };
  const lines = Object.entries(strategies).filter(([, one]) => one.tokens?.mean)
    .map(([name, one], i) => line(visible(name), i + 1, [[one.tokens!.mean, one.accuracy ?? null]]));
  return <section aria-label={`Strategies, ${visible(run.key)}`}>
    <h2>{titled ? `${visible(run.key)}: strategies` : "Strategies"}</h2>
    {partial && <p class="notice">Partial: {visible(partial)}</p>}
    <Chart theme={theme} lines={[{ ...line("a vote among candidates", 0, votes), dash: [6, 4] }, ...lines]}
      about={{ title: "Accuracy at equal tokens (%)", x: "tokens a problem, prompts included", logX: true, zero: true, note: "What stands above the line beats a vote that costs as much." }} />
    {sheets.map((sheet) => <div class="scroll" key={sheet.title} tabIndex={0} role="region" aria-label={visible(sheet.title)}><table>
      <caption>{visible(sheet.title)}</caption>
      <thead><tr>{sheet.cells[0]!.map((head) => <th key={head} scope="col">{visible(head)}</th>)}</tr></thead>
      <tbody>{sheet.cells.slice(1).map((row, i) => <tr key={i}><th scope="row">{visible(row[0]!)}</th>{row.slice(1).map((cell, j) => <td key={j}>{cell}</td>)}</tr>)}</tbody>
    </table></div>)}
    <p class="soft">{notes.join(" ")}</p>
  </section>;
}

/** One row a round, before and after side by side. */
function Tables({ run, titled }: { run: Run; titled: boolean }) {
  const found = Object.values(run.evaluations).sort((a, b) => b.label.localeCompare(a.label));
  const titles = [...new Set(found.flatMap((one) => one.sheets.map((sheet) => sheet.title)))];
  return <>
    <h2>{titled ? `${visible(run.key)}: numbers by round` : "Numbers by round"}</h2>
    {!found.length && <p class="soft">No evaluation is recorded.</p>}
    {titles.map((title) => {
      const sheets = found.map((one) => [one.label, one.sheets.find((sheet) => sheet.title === title)] as const).filter(([, sheet]) => sheet);
      const heads = sheets[0]![1]!.cells[0]!, rounds = Math.max(...sheets.map(([, sheet]) => sheet!.cells.length - 1));
      return <div class="scroll" key={title} tabIndex={0} role="region" aria-label={title}><table>
        <caption>{title}</caption>
        <thead><tr><th rowSpan={2} scope="col">round</th>{heads.slice(1).map((head) => <th key={head} colSpan={sheets.length} scope="colgroup">{head}</th>)}</tr>
          <tr>{heads.slice(1).flatMap((head) => sheets.map(([label]) => <th key={head + label} scope="col">{label.replace(" training", "")}</th>))}</tr></thead>
        <tbody>{Array.from({ length: rounds }, (_, t) => <tr key={t}><th scope="row">{t}</th>
          {heads.slice(1).flatMap((head, column) => sheets.map(([label, sheet]) => <td key={head + label}>{sheet!.cells[t + 1]?.[column + 1] ?? "-"}</td>))}</tr>)}</tbody>
      </table></div>;
    })}
    <p class="soft">Shares in percent, with 95% intervals bootstrapped over problems. A dash: nothing to measure.</p>
    {(["config", "manifest"] as const).map((name) => <details key={name}><summary>{name === "config" ? "Configuration" : "Manifest"}</summary>
      <pre>{visible(JSON.stringify(run[name], null, 2))}</pre></details>)}
  </>;
}
