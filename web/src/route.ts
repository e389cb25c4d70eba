// The part of the address after #, so that every run, list, problem and card has a link.

export type Route = Record<string, string>;

export function here(): Route { return Object.fromEntries(new URLSearchParams(location.hash.slice(1))); }

export function link(route: Record<string, string | number | undefined>): string {
  const kept = Object.entries(route).filter(([, value]) => value !== undefined && value !== "");
  return "#" + new URLSearchParams(kept.map(([name, value]) => [name, String(value)])).toString();
}

export function go(route: Record<string, string | number | undefined>, replace = false): void {
  if (!replace) { location.hash = link(route); return; }
  history.replaceState(null, "", link(route));
  dispatchEvent(new HashChangeEvent("hashchange"));
}
