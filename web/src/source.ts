// Where the page's data comes from: the file itself, or the server that follows the runs.
import type { Found, Metric, PageData, Query, Row, Run, RunHead, Trace } from "./types";

export interface Source {
  live: boolean;
  runs(): Promise<RunHead[]>;
  run(key: string): Promise<Run>;
  problems(key: string, file: string, query: Query): Promise<Found>;
  traces(key: string, file: string, numbers: number[]): Promise<Trace[]>;
  find(key: string, file: string, problem: string, repeat: number): Promise<number | null>;
}

export const data: PageData = JSON.parse(document.getElementById("data")?.textContent || "{}");

export class Embedded implements Source {
  live = false;
  async runs(): Promise<RunHead[]> {
    return (data.runs ?? []).map((run) => ({
      ...run, files: Object.fromEntries(Object.entries(run.sources ?? {}).map(([name, one]) => [name, one.total])),
    }));
  }
  async run(key: string): Promise<Run> {
    const found = data.runs?.find((run) => run.key === key);
    if (!found) throw new Error(`This file holds no run ${key}.`);
    return found;
  }
  async sample(key: string, file: string) {
    const found = (await this.run(key)).sources?.[file];
    if (!found) throw new Error(`This file holds no traces of ${file}.`);
    return found;
  }
  async problems(key: string, file: string, query: Query): Promise<Found> {
    const sample = await this.sample(key, file);
    const bit = data.kinds.indexOf(query.kind), text = query.text.toLowerCase();
    const rows = sample.rows.filter((row) =>
      (bit < 0 || (row.kinds >> bit) & 1) && (!query.step || row.step === Number(query.step)) &&
      (!text || searched(sample.details[row.n]).includes(text)));
    rows.sort((a, b) => order(a, b, query.sort, query.descending));
    return { total: rows.length, rows: rows.slice(query.offset, query.offset + query.limit), count: sample.total, bad: 0 };
  }
  async traces(key: string, file: string, numbers: number[]): Promise<Trace[]> {
    const sample = await this.sample(key, file);
    return numbers.map((n) => {
      const found = sample.details[n];
      if (!found) throw new Error(`Trace ${n} is not among those that this file holds.`);
      return { ...found, n };
    });
  }
  async find(key: string, file: string, problem: string, repeat: number): Promise<number | null> {
    const same = (await this.sample(key, file)).rows.filter((row) => row.problem === problem);
    return (same.find((row) => row.repeat === repeat) ?? same[0])?.n ?? null;
  }
}

function searched(trace: Omit<Trace, "n"> | undefined): string {
  if (!trace) return "";
  const answers = trace.rounds.flat().flatMap((group) => group.outputs.map((card) => card.answer ?? ""));
  return [trace.problem, trace.text, ...answers].join("\n").toLowerCase();
}

export function order(a: Row, b: Row, sort: string, descending: boolean): number {
  const value = (row: Row) => sort === "gain" ? (row.first === null || row.last === null ? null : row.last - row.first)
    : (row as unknown as Record<string, number | string | null>)[sort] ?? null;
  const [x, y] = [value(a), value(b)];
  if (x === y) return a.n - b.n;
  if (x === null || y === null) return x === null ? 1 : -1;
  return (x < y ? -1 : 1) * (descending ? -1 : 1);
}

export class Live implements Source {
  live = true;
  known = new Map<string, { epoch: number; count: number; metrics: Map<number, Metric> }>();
  async get<T>(path: string, given: Record<string, string | number>): Promise<T> {
    const asked = new URLSearchParams(Object.entries(given).map(([name, value]) => [name, String(value)]));
    const answer = await fetch(`api/${path}?${asked}`);
    const body = await answer.json();
    if (!answer.ok) throw new Error(body.error ?? `the server says ${answer.status}`);
    return body as T;
  }
  runs() { return this.get<RunHead[]>("runs", {}); }
  async run(key: string): Promise<Run> {
    const before = this.known.get(key);
    const found = await this.get<Run>("run", { run: key, epoch: before?.epoch ?? -1, known: before?.count ?? 0 });
    const metrics = before && found.first ? before.metrics : new Map<number, Metric>();
    for (const row of found.metrics) metrics.set(row.step, row);  // of a step that a resumed run did again, the last
    this.known.set(key, { epoch: found.epoch ?? 0, count: (found.first ?? 0) + found.metrics.length, metrics });
    return { ...found, key, metrics: [...metrics.values()].sort((a, b) => a.step - b.step) };
  }
  problems(key: string, file: string, query: Query) {
    return this.get<Found>("problems", { run: key, file, ...query, descending: query.descending ? 1 : 0 });
  }
  traces(key: string, file: string, numbers: number[]) {
    return this.get<Trace[]>("traces", { run: key, file, n: numbers.join(",") });
  }
  find(key: string, file: string, problem: string, repeat: number) {
    return this.get<number | null>("find", { run: key, file, problem, repeat });
  }
}
