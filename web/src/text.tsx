// Text of models and data files: never markup. Invisible characters are spelled out, mathematics is typeset as MathML.
import katex from "katex";
import type { ComponentChildren } from "preact";
import { useLayoutEffect, useMemo, useRef } from "preact/hooks";

const HIDDEN = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\p{Zl}\p{Zp}]/gu;
const MATH = /\$\$([^$]{1,2000})\$\$|\\\[([\s\S]{1,2000}?)\\\]|\\\(([\s\S]{1,2000}?)\\\)|\$(?!\s)([^$\n]{1,400}?)(?<![\s\\])\$(?!\d)/g;
const MOST_FORMULAS = 200;

/** A text with what has no look of its own (control, format, half surrogates) spelled out. */
export function visible(text: string): string {
  return text.replace(HIDDEN, (found) => {
    if (found === "\n" || found === "\t") return found;
    const code = found.codePointAt(0)!;
    return code < 256 ? "\\x" + code.toString(16).padStart(2, "0")
      : code < 65536 ? "\\u" + code.toString(16).padStart(4, "0") : "\\U" + code.toString(16).padStart(8, "0");
  });
}

export function oneLine(text: string, most = 80): string {
  const shown = visible(text.replace(/\s+/g, " ").trim());
  return shown.length > most ? shown.slice(0, most - 1) + "…" : shown;
}

function Formula({ source, tex, block }: { source: string; tex: string; block: boolean }) {
  const place = useRef<HTMLSpanElement>(null);
  useLayoutEffect(() => {
    if (!place.current) return;
    try {
      katex.render(tex, place.current, {
        output: "mathml", displayMode: block, throwOnError: true, strict: "ignore", trust: false, maxExpand: 200, maxSize: 10,
      });
    } catch { place.current.textContent = visible(source); }
  }, [source]);
  return <span ref={place} class={block ? "formula block" : "formula"} />;
}

/** A text with its formulas typeset; as it is where `raw`. */
export function Text({ text, raw = false }: { text: string; raw?: boolean }) {
  const parts = useMemo(() => {
    const out: ComponentChildren[] = [];
    let at = 0;
    if (!raw) for (const found of text.matchAll(MATH)) {
      if (out.length > 2 * MOST_FORMULAS) break;
      const [source, double, square, round, single] = found;
      out.push(visible(text.slice(at, found.index)));
      out.push(<Formula key={`${found.index} ${source}`} source={source} tex={(double ?? square ?? round ?? single)!}
        block={double !== undefined || square !== undefined} />);
      at = found.index + source.length;
    }
    out.push(visible(text.slice(at)));
    return out;
  }, [text, raw]);
  return <div class="text" dir="ltr">{parts}</div>;
}

export function number(value: number | null | undefined, digits = 3): string {
  if (value === null || value === undefined || !Number.isFinite(value)) return "-";
  if (Number.isInteger(value) || Math.abs(value) >= 1000) return Math.round(value).toLocaleString("en");
  return Number(value.toPrecision(digits)).toString();
}

export function percent(value: number | null | undefined): string {
  return value === null || value === undefined ? "-" : (100 * value).toFixed(1);
}
