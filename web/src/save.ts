// Export: what is shown as a file. A spreadsheet must not take a model's text for a formula.
import type { Trace } from "./types";

export function save(name: string, parts: BlobPart[], type: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(parts, { type }));
  link.download = name.replace(/[^\w.-]+/g, "-");
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** A field of a CSV file, quoted; one that a spreadsheet would compute begins with an apostrophe. */
export function field(value: unknown): string {
  if (value === null || value === undefined) return "";
  if (typeof value === "number") return String(value);
  const text = String(value);
  const safe = /^[\s\p{Cf}\p{Cc}]*[=+\-@\uFF0B\uFF0D\uFF1D\uFF20|%]/u.test(text) || /^[\t\r\n]/.test(text) ? "'" + text : text;
  return `"${safe.replaceAll('"', '""')}"`;
}

export function csv(rows: unknown[][]): string { return rows.map((row) => row.map(field).join(",") + "\r\n").join(""); }

export const COLUMNS = ["run", "file", "n", "problem", "repeat", "step", "round", "group", "index", "verdict", "answer",
  "reward", "credit", "tokens", "finish", "pool", "failure", "reason", "text"];

/** One row a completion, below COLUMNS. */
export function completions(run: string, file: string, trace: Trace): unknown[][] {
  return trace.rounds.flatMap((groups, t) => groups.flatMap((group, g) => group.outputs.map((card) => [
    run, file, trace.n, trace.problem, trace.extra.repeat ?? 0, trace.extra.step, t, g, card.index, card.verdict, card.answer,
    card.reward, card.credit, card.tokens, card.finish, group.pool.join(" "), card.failure, card.reason, card.text,
  ])));
}
