// The list of problems: filtered, sorted, searched; each row shows what became of its answers round by round.
import { useEffect, useState } from "preact/hooks";
import { go, link, type Route } from "./route";
import { COLUMNS, completions, csv, save } from "./save";
import type { Source } from "./source";
import { number, oneLine, percent, visible } from "./text";
import type { Found, Query, RunHead, Trace } from "./types";
import { fileLabel, LABELS } from "./types";

const PAGE = 50, EXPORT_BATCH = 50;
const SIGNS: Record<string, [string, string]> = { r: ["✓", "right"], w: ["✗", "wrong"], u: ["?", "unscored"], f: ["—", "failed"] };
export const queryOf = (route: Route, limit = PAGE): Query => ({
  kind: route.kind ?? "", text: route.text ?? "", step: route.step ?? "", sort: route.sort ?? "n",
  descending: route.down === "1", offset: Number(route.at ?? 0), limit,
});

export function Marks({ marks }: { marks: string }) {
  const rounds = marks.split("/");
  const said = rounds.map((round, t) => `round ${t}: ${[...round].filter((c) => c === "r").length} of ${round.length} right`).join(", ");
  return <span class="marks" role="img" aria-label={said}>{rounds.map((round, t) => <span key={t} class="round">
    {round.length > 16 ? <b>{[...round].filter((c) => c === "r").length}/{round.length}</b>
      : [...round].map((c, i) => <span key={i} class={SIGNS[c]?.[1]}>{SIGNS[c]?.[0]}</span>)}</span>)}</span>;
}

export function Rollouts({ source, head, route, kinds, beat }: {
  source: Source; head: RunHead; route: Route; kinds: string[]; beat: string;
}) {
  const files = Object.keys(head.files ?? {});
  const file = route.file && files.includes(route.file) ? route.file : files[0] ?? "";
  const [found, setFound] = useState<Found>(), [error, setError] = useState(""), [saving, setSaving] = useState("");
  const query = queryOf(route), asked = JSON.stringify([head.key, file, query]);
  useEffect(() => {
    let current = true;
    if (file) source.problems(head.key, file, query).then((some) => { if (current) { setFound(some); setError(""); } },
      (e: Error) => { if (current) setError(e.message); });
    return () => { current = false; };
  }, [asked, beat]);
  const base = { ...route, view: "rollouts", run: head.key, file };
  const set = (change: Route) => go({ ...base, at: "", ...change }, true);
  const exported = async (how: "jsonl" | "csv") => {
    const parts: string[] = how === "csv" ? [csv([COLUMNS])] : [];
    for (let at = 0; at < (found?.total ?? 0);) {
      const rows = (await source.problems(head.key, file, { ...query, offset: at, limit: EXPORT_BATCH })).rows;
      if (!rows.length) break;
      for (const trace of await source.traces(head.key, file, rows.map((row) => row.n))) parts.push(line(how, head.key, file, trace));
      at += rows.length;
      setSaving(`${at} of ${found?.total}`);
    }
    save(`${head.key}-${file}.${how}`, parts, how === "csv" ? "text/csv" : "application/jsonl");
    setSaving("");
  };
  if (!file) return <p class="soft">{visible(head.key)} holds no traces yet.</p>;
  const sorter = (name: string, title: string) => <th scope="col" aria-sort={query.sort === name ? (query.descending ? "descending" : "ascending") : undefined}>
    <button type="button" onClick={() => set({ sort: name, down: query.sort === name && !query.descending ? "1" : "" })}>{title}{query.sort === name ? (query.descending ? " ▾" : " ▴") : ""}</button></th>;
  return <section aria-label="Rollouts">
    <div class="bar" role="group" aria-label="Filters">
      <label>Of <select value={file} onChange={(e) => set({ file: e.currentTarget.value, step: "" })}>{files.map((one) => <option key={one} value={one}>{visible(fileLabel(one))}</option>)}</select></label>
      <label>Show <select id="kind" value={query.kind} onChange={(e) => set({ kind: e.currentTarget.value })}><option value="">all</option>
        {kinds.map((kind) => <option key={kind} value={kind}>{LABELS[kind] ?? kind}</option>)}</select></label>
      {file === "traces" && <label>Step <input type="number" min="0" class="short" value={query.step} onInput={(e) => set({ step: e.currentTarget.value })} /></label>}
      <label>Text <input id="search" type="search" value={query.text} placeholder="in problem or answers ( / )" onInput={(e) => set({ text: e.currentTarget.value })} /></label>
      <button type="button" disabled={!found?.total || !!saving} onClick={() => void exported("jsonl")}>Save JSONL</button>
      <button type="button" disabled={!found?.total || !!saving} onClick={() => void exported("csv")}>Save CSV</button>
      <span role="status">{saving || (found ? counted(found, source.live, head.files?.[file] ?? 0) : "")}</span>
    </div>
    {error && <p class="notice">{visible(error)}</p>}
    <div class="scroll" tabIndex={0} role="region" aria-label="Problems"><table class="list">
      <thead><tr>{sorter("problem", "problem")}{file === "traces" && sorter("step", "step")}<th scope="col">rounds</th>{sorter("first", "first %")}{sorter("last", "last %")}{sorter("gain", "gain")}
        {sorter("answers", "answers")}{sorter("tokens", "tokens")}<th scope="col">strategy</th></tr></thead>
      <tbody>{found?.rows.map((row) => <tr key={row.n}>
        <th scope="row"><a class="problem" href={link({ ...base, view: "problem", n: row.n })}>{oneLine(row.problem, 40)}</a>{row.repeat ? ` #${row.repeat}` : ""} <span class="soft">{oneLine(row.text, 60)}</span></th>
        {file === "traces" && <td>{row.step ?? "-"}</td>}
        <td><Marks marks={row.marks} /></td><td>{percent(row.first)}</td><td>{percent(row.last)}</td>
        <td>{row.first === null || row.last === null ? "-" : percent(row.last - row.first)}</td>
        <td>{row.answers}</td><td>{number(row.tokens)}</td><td class="soft">{oneLine(row.strategy, 40)}</td></tr>)}</tbody>
    </table></div>
    {found && found.total > PAGE && <nav class="bar" aria-label="Pages">
      <button type="button" disabled={!query.offset} onClick={() => set({ at: String(Math.max(0, query.offset - PAGE)) })}>← earlier</button>
      <span>{query.offset + 1} to {Math.min(query.offset + PAGE, found.total)} of {found.total.toLocaleString("en")}</span>
      <button type="button" disabled={query.offset + PAGE >= found.total} onClick={() => set({ at: String(query.offset + PAGE) })}>later →</button></nav>}
  </section>;
}

export function line(how: "jsonl" | "csv", run: string, file: string, trace: Trace): string {
  return how === "csv" ? csv(completions(run, file, trace)) : JSON.stringify({ run, file, ...trace }) + "\n";
}

function counted(found: Found, live: boolean, all: number): string {
  const total = found.total.toLocaleString("en"), bad = found.bad ? `; ${found.bad} lines are no traces` : "";
  if (live) return `${total} of ${found.count.toLocaleString("en")} problems${bad}`;
  return all > found.total ? `${total} shown; this file holds a sample of ${all.toLocaleString("en")}, \`paragator view\` shows all` : `${total} problems`;
}
