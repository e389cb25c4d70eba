// What Python hands over: report/contents.py (runs), report/rollouts.py (traces).

export interface Interval { mean: number; low: number | null; high: number | null }
export type Metric = Record<string, number | null | undefined> & { step: number };
export interface RoundNumbers { round: number; [measure: string]: unknown }
export interface Evaluation {
  label: string; k: number; problems: number; traces: number; note?: string;
  rounds: RoundNumbers[]; votes: [number, Interval | null][]; sheets: { title: string; cells: string[][] }[];
}
/** report/strategies.py: each strategy's accuracy and tokens, and a vote's at every number of candidates. */
export interface Strategies {
  partial?: string | null; problems?: number; strategies?: Record<string, Record<string, Interval | null>>;
  votes?: [number, Interval | null][]; sheets?: { title: string; cells: string[][] }[]; notes?: string[];
}
export interface Warning { name: string; text: string }
export interface RunHead {
  key: string; stamp?: string; name: string; method: string; model: string; task: string; seed: number | null;
  steps: number; planned: number | null; started: string | null; files?: Record<string, number>;
}
export interface Run extends RunHead {
  config: Record<string, unknown>; manifest: Record<string, unknown>; metrics: Metric[];
  evals: { step: number; rounds: RoundNumbers[] }[];
  evaluations: Record<string, Evaluation>; strategies?: Strategies; warnings: Warning[];
  sources?: Record<string, Sample>; pending?: string[]; first?: number; epoch?: number;
}
export interface Row {
  n: number; problem: string; repeat: number; step: number | null; strategy: string; text: string; marks: string;
  first: number | null; last: number | null; answers: number; tokens: number; kinds: number;
}
export interface Card {
  index: number | null; failure?: string; text: string; thinking: string | null; finish: string; tokens: number | null;
  verdict: "correct" | "incorrect" | "unscored"; answer: string | null; reason: string; reward: number | null;
  credit: number | null;
}
export interface CardGroup {
  stage: string; pool: number[]; prompt: string; chat: boolean; reductions: string[]; prompt_tokens: number | null;
  outputs: Card[];
}
export interface Trace {
  n: number; problem: string; text: string; answer: unknown; failure: string | null; extra: Record<string, unknown>;
  plan: string; seed: number; rounds: CardGroup[][];
}
export interface Sample { total: number; rows: Row[]; details: Record<string, Omit<Trace, "n">> }
export interface Query {
  kind: string; text: string; step: string; sort: string; descending: boolean; offset: number; limit: number;
}
export interface Found { total: number; rows: Row[]; count: number; bad: number }
export interface PageData { live: boolean; kinds: string[]; meanings: Record<string, string>; runs?: Run[] }

export const FILES: Record<string, string> = {
  eval_after: "after training", eval: "evaluation", eval_before: "before training", traces: "training",
};
/** What a file of traces is of: those of a strategy are named by it. */
export const fileLabel = (file: string) => FILES[file] ?? file.replace("strategies/", "strategy ");
export const LABELS: Record<string, string> = {
  right_to_wrong: "right to wrong", wrong_to_right: "wrong to right", recovered: "all wrong, recovered",
  lost: "right answer lost", disagreement: "disagreement", truncated: "truncated", unscored: "unscored", failed: "failed",
};
