// The words that an aggregation took from its nearest candidate, and those that it did not.

export interface Piece { text: string; kind: "same" | "added" | "removed" }
const MOST_CELLS = 9_000_000;

export function split(text: string): string[] { return text.match(/\s+|[\p{L}\p{N}_]+|[^\s\p{L}\p{N}_]/gu) ?? []; }

/** Dice's coefficient of two texts' words: 1 for the same words, 0 for none in common. */
export function similarity(a: string, b: string): number {
  const count = new Map<string, number>(), [x, y] = [a, b].map((text) => split(text).filter((word) => word.trim()));
  for (const word of x!) count.set(word, (count.get(word) ?? 0) + 1);
  let shared = 0;
  for (const word of y!) {
    const left = count.get(word) ?? 0;
    if (left) { shared++; count.set(word, left - 1); }
  }
  return x!.length + y!.length ? (2 * shared) / (x!.length + y!.length) : 1;
}

/** By the longest common subsequence of words, or of lines where there are too many words. */
export function diff(before: string, after: string): Piece[] {
  let [a, b] = [split(before), split(after)];
  if (a.length * b.length > MOST_CELLS) [a, b] = [before.split(/(?<=\n)/), after.split(/(?<=\n)/)];
  if (a.length * b.length > MOST_CELLS) return [{ text: before, kind: "removed" }, { text: after, kind: "added" }];
  const width = b.length + 1, best = new Uint32Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i--)
    for (let j = b.length - 1; j >= 0; j--)
      best[i * width + j] = a[i] === b[j] ? best[(i + 1) * width + j + 1]! + 1
        : Math.max(best[(i + 1) * width + j]!, best[i * width + j + 1]!);
  const out: Piece[] = [];
  const add = (text: string, kind: Piece["kind"]) => {
    const last = out[out.length - 1];
    if (last?.kind === kind) last.text += text;
    else out.push({ text, kind });
  };
  let i = 0, j = 0;
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) { add(a[i]!, "same"); i++; j++; }
    else if (j >= b.length || (i < a.length && best[(i + 1) * width + j]! >= best[i * width + j + 1]!)) add(a[i++]!, "removed");
    else add(b[j++]!, "added");
  }
  return out;
}
