// Curves drawn with uPlot: hover for values, drag to zoom, double click to see all, log scale, smoothing over the raw line.
import { useEffect, useRef, useState } from "preact/hooks";
import uPlot from "uplot";
import { csv, save } from "./save";

export interface Line {
  label: string; color: string; x: number[]; y: (number | null)[]; low?: (number | null)[]; high?: (number | null)[];
  dash?: number[]; points?: boolean; faint?: boolean; steps?: boolean;
}
/** Okabe and Ito's palette, told apart with every common colour vision; dashes repeat the distinction. */
export const COLORS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f"];
export const color = (index: number) => COLORS[index % COLORS.length]!;

/** Mean over a centred window of about a share of the series. */
export function smooth(values: (number | null)[], share: number): (number | null)[] {
  const half = Math.floor((values.length * share) / 2);
  return values.map((own, i) => {
    if (own === null) return null;
    const some = values.slice(Math.max(0, i - half), i + half + 1).filter((v): v is number => v !== null);
    return some.reduce((a, b) => a + b, 0) / some.length;
  });
}

function table(lines: Line[]): [number[], (number | null)[][]] {
  const xs = [...new Set(lines.flatMap((line) => line.x))].sort((a, b) => a - b);
  const spread = (line: Line, values: (number | null)[]) => {
    const at = new Map(line.x.map((x, i) => [x, values[i] ?? null]));
    return xs.map((x) => at.get(x) ?? null);
  };
  return [xs, lines.flatMap((line) => [spread(line, line.y), ...(line.low ? [spread(line, line.low), spread(line, line.high!)] : [])])];
}

const css = (name: string) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function options(lines: Line[], width: number, about: About, log: boolean): uPlot.Options {
  const series: uPlot.Series[] = [{ label: about.x, value: (_u, v) => (v === null ? "last" : String(v)) }], bands: uPlot.Band[] = [];
  const short = (v: number | null | undefined) => v === null || v === undefined ? "-" : String(Number(v.toPrecision(4)));
  const show = (u: uPlot, _v: number | null, at: number, hovered: number | null) => {  // else the last that there is
    const i = hovered ?? u.data[at]!.findLastIndex((value) => value !== null && value !== undefined), v = u.data[at]![i];
    const [low, high] = [u.data[at + 1]?.[i], u.data[at + 2]?.[i]];
    return short(v) + (series[at + 1]?.class === "bound" && v !== null && v !== undefined && low !== undefined ? ` [${short(low)}, ${short(high)}]` : "");
  };
  for (const line of lines) {
    series.push({
      label: line.label, stroke: line.color + (line.faint ? "55" : ""), width: line.faint ? 1 : 2, dash: line.dash, spanGaps: true,
      points: { show: Boolean(line.points), size: 6, fill: line.color }, value: show, class: line.faint ? "faint" : undefined,
    });
    if (!line.low) continue;
    const at = series.length;
    for (const end of ["low", "high"])
      series.push({ label: `${line.label}, ${end}`, class: "bound", stroke: line.color + "50", width: 1, points: { show: false }, value: show, spanGaps: true });
    bands.push({ series: [at + 1, at], fill: line.color + "22" });
  }
  const ink = css("--ink"), grid = css("--line"), font = "12px system-ui, sans-serif";
  const axis = { stroke: ink, grid: { stroke: grid, width: 1 }, ticks: { stroke: grid, width: 1 }, font, labelFont: font };
  return {
    width, height: about.height ?? 240, series, bands, legend: { live: true, isolate: true, markers: { width: () => 0, fill: (_u, i) => sample(series[i]!) } }, cursor: { focus: { prox: 24 } },
    scales: { x: { time: false, distr: about.logX ? 3 : 1 }, y: { distr: log ? 3 : 1, range: log ? undefined : (_u, low, high) => range(low, high, about.zero) } },
    axes: [{ ...axis, label: about.x, labelSize: 20, size: 34, ...(about.whole || about.x === "step" ? { incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000] } : {}) }, { ...axis, size: 58 }],
    focus: { alpha: 0.35 },
  };
}

/** A piece of the line with its dashes, for the legend: CSS of a background. */
function sample({ stroke, dash }: uPlot.Series): string {
  let at = 0;
  const piece = (length: number, i: number) => `${i % 2 ? "transparent" : String(stroke)} ${at}px ${(at += length)}px`;
  return dash ? `repeating-linear-gradient(90deg,${dash.map(piece).join(",")})` : String(stroke ?? "none");
}

function range(low: number, high: number, zero?: boolean): [number, number] {
  if (!Number.isFinite(low)) return [0, 1];
  const pad = (high - low || Math.abs(high) || 1) * 0.06;
  return [zero && low >= 0 ? 0 : low - pad, high + pad];
}

export interface About { title: string; x: string; zero?: boolean; whole?: boolean; logX?: boolean; height?: number; note?: string }

/** One picture with its legend; the table and the file hold the same numbers. */
export function Chart({ lines, about, theme }: { lines: Line[]; about: About; theme: string }) {
  const place = useRef<HTMLDivElement>(null), plot = useRef<uPlot | undefined>(undefined), [log, setLog] = useState(false), shape = useRef("");
  const drawn = lines.filter((line) => line.y.some((value) => value !== null));
  useEffect(() => {
    if (!place.current || !drawn.length) { plot.current?.destroy(); plot.current = undefined; shape.current = ""; return; }
    const [xs, ys] = table(drawn), data = [xs, ...ys] as uPlot.AlignedData;
    const now = JSON.stringify([drawn.map((line) => [line.label, line.color, Boolean(line.low)]), log, theme, about.logX, about.x]);
    if (plot.current && now === shape.current) {  // new values only: a zoom stays
      const { min, max } = plot.current.scales.x!, old = plot.current.data[0];
      const zoomed = min !== old[0] || max !== old[old.length - 1];
      plot.current.setData(data, !zoomed);
      if (zoomed) plot.current.redraw();
      return;
    }
    plot.current?.destroy();
    shape.current = now;
    plot.current = new uPlot(options(drawn, place.current.clientWidth, about, log), data, place.current);
    const legend = place.current.querySelector<HTMLElement>(".u-legend");
    if (legend && legend.scrollHeight > legend.clientHeight) legend.tabIndex = 0;  // it scrolls, by keys too
  });
  useEffect(() => {
    const watch = new ResizeObserver(() => {
      if (plot.current && place.current?.clientWidth) plot.current.setSize({ width: place.current.clientWidth, height: about.height ?? 240 });
    });
    if (place.current) watch.observe(place.current);
    return () => { watch.disconnect(); plot.current?.destroy(); plot.current = undefined; };
  }, []);
  const export_ = () => {
    const [xs, ys] = table(drawn);
    const names = drawn.flatMap((line) => [line.label, ...(line.low ? [`${line.label}, low`, `${line.label}, high`] : [])]);
    save(`${about.title}.csv`, [csv([[about.x, ...names], ...xs.map((x, i) => [x, ...ys.map((y) => y[i])])])], "text/csv");
  };
  return (
    <figure class="chart">
      <figcaption><b>{about.title}</b>
        {drawn.length > 0 && <span class="tools">
          <button type="button" aria-pressed={log} aria-label={`${about.title}: log scale`} onClick={() => setLog(!log)}>log</button>
          <button type="button" aria-label={`${about.title}: save as CSV`} onClick={export_}>csv</button></span>}
      </figcaption>
      {about.note && <p class="soft">{about.note}</p>}
      <div ref={place} role="img" aria-label={`${about.title}: ${drawn.map(last).join("; ") || "nothing recorded"}`} />
      {!drawn.length && <p class="soft">Not recorded.</p>}
    </figure>
  );
}

function last(line: Line): string {
  const values = line.y.filter((value): value is number => value !== null);
  return `${line.label} ${values.at(-1)?.toPrecision(3) ?? "-"}`;
}
