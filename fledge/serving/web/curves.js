// The curves of a stage, kept in the page: all at first, then only what was appended since.

import { load } from "./common.js";

const MOST_POINTS = 6000; // beyond this all is read again, thinned by the server

export const SOURCE_TOKENS = "train/source_tokens/";

export class Curves {
  constructor(run, stage) {
    this.path = `/board/runs/${encodeURIComponent(run)}/stages/${encodeURIComponent(stage)}/curves`;
    this.reading = null;
    this.clear();
  }

  clear() {
    this.cursor = null;
    this.series = new Map();
    this.notFinite = 0;
  }

  /** Read what is new; whether anything is. Whoever asks while it is being read waits for the same: two readings would both append it. */
  refresh(signal) {
    this.reading ??= this.read(signal).finally(() => (this.reading = null));
    return this.reading;
  }

  async read(signal) {
    if ([...this.series.values()].some((points) => points.length > MOST_POINTS)) this.clear();
    const query = this.cursor === null ? "" : `?cursor=${encodeURIComponent(this.cursor)}`;
    const found = await load(this.path + query, { signal });
    if (found.is_new_file) this.clear();
    this.cursor = found.cursor;
    const names = Object.keys(found.series);
    for (const name of names) {
      const known = this.series.get(name);
      if (known) known.push(...found.series[name]);
      else this.series.set(name, found.series[name]);
    }
    this.notFinite += Object.values(found.not_finite).reduce((sum, count) => sum + count, 0);
    return found.is_new_file || names.length > 0;
  }

  points(name) {
    return this.series.get(name) ?? [];
  }

  last(name) {
    return this.points(name).at(-1)?.[1] ?? null;
  }

  names() {
    return [...this.series.keys()];
  }

  /** For each source its share of what was read between two records: [{name, points}]. */
  shares() {
    const names = this.names().filter((name) => name.startsWith(SOURCE_TOKENS));
    const read = names.map((name) => new Map(this.points(name)));
    // A file of others may name a source in some records only.
    const steps = [...(read[0]?.keys() ?? [])].filter((step) => read.every((one) => one.has(step)));
    return names.map((name, number) => ({
      name: name.slice(SOURCE_TOKENS.length),
      points: steps.flatMap((step, place) => {
        const between = read.map((one) => one.get(step) - (place ? one.get(steps[place - 1]) : 0));
        const whole = between.reduce((sum, tokens) => sum + tokens, 0);
        return whole > 0 ? [[step, between[number] / whole]] : [];
      }),
    }));
  }
}
