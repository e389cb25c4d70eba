// The page: which runs are shown, which view, and following the files where a server does.
import { render } from "preact";
import { useEffect, useLayoutEffect, useMemo, useState } from "preact/hooks";
import { color } from "./charts";
import { Overview } from "./overview";
import { Problem } from "./problem";
import { Rollouts } from "./rollouts";
import { go, here, link, type Route } from "./route";
import { data, Embedded, Live, type Source } from "./source";
import { visible } from "./text";
import type { Run, RunHead } from "./types";

const BEAT_MS = 2000, MOST_AT_FIRST = 6, THEMES = ["auto", "light", "dark"];
const source: Source = data.live ? new Live() : new Embedded();

function usePage() {
  const [route, setRoute] = useState<Route>(here()), [heads, setHeads] = useState<RunHead[]>(), [error, setError] = useState("");
  useLayoutEffect(() => { // listeners stand before the first paint: an early key or link is not lost
    const moved = () => setRoute(here());
    addEventListener("hashchange", moved);
    return () => removeEventListener("hashchange", moved);
  }, []);
  useEffect(() => {
    let timer = 0;
    const beat = async () => {
      try { setHeads(await source.runs()); setError(""); }
      catch { setError("The server does not answer; what is shown may be old. It is asked again every two seconds."); }
      if (source.live) timer = window.setTimeout(() => void beat(), document.hidden ? 5 * BEAT_MS : BEAT_MS);
    };
    void beat();
    return () => clearTimeout(timer);
  }, []);
  return { route, heads, error };
}

/** The runs that are shown, read again where their stamp has changed. */
function useRuns(heads: RunHead[], wanted: boolean): [Run[], string] {
  const [runs, setRuns] = useState<Record<string, Run>>({}), [error, setError] = useState("");
  const stamps = heads.map((head) => `${head.key} ${head.stamp ?? ""}`).join("\n");
  useEffect(() => {
    if (!wanted) return;
    for (const head of heads)
      if (runs[head.key]?.stamp !== head.stamp || !runs[head.key])
        source.run(head.key).then((run) => { setRuns((now) => ({ ...now, [head.key]: { ...run, stamp: head.stamp, files: head.files } })); setError(""); },
          (e: Error) => setError(e.message));
  }, [stamps, wanted]);
  return [heads.map((head) => runs[head.key]).filter((run): run is Run => !!run), error];
}

function useTheme(): [string, () => void] {
  const [theme, setTheme] = useState("auto");
  useLayoutEffect(() => { document.documentElement.dataset.theme = theme; }, [theme]);
  return [theme, () => setTheme((now) => THEMES[(THEMES.indexOf(now) + 1) % THEMES.length]!)];
}

function Page() {
  const { route, heads, error } = usePage(), [theme, nextTheme] = useTheme(), [filter, setFilter] = useState("");
  const all = heads ?? [], view = route.view ?? "overview";
  const chosen = useMemo(() => {
    const named = route.runs ? new Set(JSON.parse(route.runs) as string[]) : undefined;
    return all.filter((head, i) => (named ? named.has(head.key) : i < MOST_AT_FIRST));
  }, [heads, route.runs]);
  const [runs, failed] = useRuns(chosen, view === "overview");
  const hues = runs.map((run) => color(all.findIndex((head) => head.key === run.key)));
  const current = all.find((head) => head.key === route.run) ?? (route.run ? undefined : chosen[0]);
  useLayoutEffect(() => {
    const keys = (event: KeyboardEvent) => {
      if ((event.target as HTMLElement).closest("input, select, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
      const search = document.getElementById("search");
      if (event.key === "/" && search) { event.preventDefault(); search.focus(); }
      else if (event.key === "t") nextTheme();
      else if (event.key === "o") go({ view: "overview", runs: route.runs });
      else if (event.key === "r") go({ view: "rollouts", runs: route.runs, run: current?.key });
    };
    addEventListener("keydown", keys);
    return () => removeEventListener("keydown", keys);
  });
  useEffect(() => {
    if (route.about) document.getElementById(`about-${route.about.replace(/ /g, "-")}`)?.scrollIntoView({ block: "center" });
  }, [route.about, runs.length]);
  const choose = (key: string) => {
    const now = new Set(chosen.map((head) => head.key));
    if (!now.delete(key)) now.add(key);
    go({ ...route, runs: JSON.stringify([...now]) }, true);
  };
  const tab = (name: string, title: string) => <a href={link({ view: name, runs: route.runs, run: name === "rollouts" ? current?.key : undefined })}
    aria-current={view === name || (view === "problem" && name === "rollouts") ? "page" : undefined}>{title}</a>;
  const shown = all.filter((head) => head.key.toLowerCase().includes(filter.toLowerCase()));
  return <>
    <header><h1>paragator</h1><nav aria-label="Views">{tab("overview", "Overview")}{tab("rollouts", "Rollouts")}</nav>
      <span class="soft" role="status">{error ? "" : source.live ? "live" : "a file: a sample of the rollouts"}</span>
      <button type="button" id="theme" onClick={nextTheme} title="t">Theme: {theme}</button></header>
    {all.length > 1 && view !== "problem" && <div class="bar runs" role="group" aria-label="Runs">
      {all.length > 8 && <input type="search" aria-label="Runs by name" placeholder="runs by name" value={filter} onInput={(e) => setFilter(e.currentTarget.value)} />}
      {shown.slice(0, 60).map((head) => view === "overview"
        ? <label key={head.key} class="chip"><input type="checkbox" checked={chosen.includes(head)} onChange={() => choose(head.key)} /><i class="dot" style={{ background: color(all.indexOf(head)) }} />{visible(head.key)}</label>
        : <a key={head.key} class="chip" aria-current={head === current ? "true" : undefined} href={link({ view: "rollouts", run: head.key, runs: route.runs })}>{visible(head.key)}</a>)}
      {shown.length > 60 && <span class="soft">and {shown.length - 60} more</span>}</div>}
    <main>
      {[error, view === "overview" ? failed : ""].filter(Boolean).map((text) => <p class="notice" key={text}>{visible(text)}</p>)}
      {heads && !all.length && <p class="notice">No run is found in the folders that were named (yet).</p>}
      {view === "overview" && <Overview runs={runs} hues={hues} theme={theme} meanings={data.meanings} about={route.about ?? ""} />}
      {view === "rollouts" && (current ? <Rollouts source={source} head={current} route={route} kinds={data.kinds} beat={current.stamp ?? ""} /> : heads && <p class="notice">That run is not there (any more).</p>)}
      {view === "problem" && <Problem source={source} heads={all} route={route} />}
    </main>
    <footer class="soft">Keys: o overview, r rollouts, / search, [ and ] problems, arrows cards, t theme.</footer>
  </>;
}

render(<Page />, document.getElementById("app")!);
