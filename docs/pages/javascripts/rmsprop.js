// The mathematics of the page “Play with it”: no page, no drawing. tests/docs/test_play.py runs it in
// Node and compares it with the library and with Optax, in float64.
(function (root, make) {
  if (typeof module === "object") module.exports = make();
  else root.rmspropMaths = make();
})(this, function () {
  "use strict";

  // As in rmsprop_jax/_formula.py: the smallest normal number gives 0/0 an answer, which is 0, and
  // a gradient counts as one whose square is finite.
  const TINY = 2.2250738585072014e-308;
  const LARGEST = 1e154;
  const clip = (g) => Math.max(-LARGEST, Math.min(LARGEST, g));
  const denominator = (s, eps) => Math.sqrt(s + TINY) + Math.max(eps, TINY);

  /** A step with the s that already has g in it: the new θ, s, the step and η/(√s + ε). */
  function take(theta, s, g, eta, eps) {
    const step = g.map((gi, i) => -eta * (gi / denominator(s[i], eps)));
    const rate = s.map((si) => eta / denominator(si, eps));
    return { theta: theta.map((ti, i) => ti + step[i]), s, step, rate };
  }

  /** s ← ρ s + (1 − ρ) g²,  θ ← θ − η g / (√s + ε) */
  function rmspropStep({ theta, s, g, eta, rho, eps }) {
    g = g.map(clip);
    return take(theta, s.map((si, i) => (1 - rho) * (g[i] * g[i]) + rho * si), g, eta, eps);
  }

  /** s ← s + g²,  θ ← θ − η g / √s */
  function adagradStep({ theta, s, g, eta }) {
    g = g.map(clip);
    return take(theta, s.map((si, i) => si + g[i] * g[i]), g, eta, 0);
  }

  /** θ ← θ − η g */
  function sgdStep({ theta, s, g, eta }) {
    const step = g.map((gi) => -eta * gi);
    return { theta: theta.map((ti, i) => ti + step[i]), s, step, rate: g.map(() => eta) };
  }

  /** Half the curvature times the square of the distance, along the ravine and across it. */
  function ravine({ steep, ratio, degrees }) {
    const turn = (degrees * Math.PI) / 180;
    const [cos, sin] = [Math.cos(turn), Math.sin(turn)];
    const flat = steep / ratio;
    const axes = ([x, y]) => [cos * x + sin * y, cos * y - sin * x];
    const value = (theta) => {
      const [along, across] = axes(theta);
      return (flat * along * along + steep * across * across) / 2;
    };
    const gradient = (theta) => {
      const [along, across] = axes(theta);
      return [
        flat * along * cos - steep * across * sin,
        flat * along * sin + steep * across * cos,
      ];
    };
    return { flat, steep, degrees, axes, value, gradient, limit: 2 / steep };
  }

  /** Pairs of normal numbers, the same for the same seed (mulberry32, Box and Muller). */
  function normalPairs(n, seed) {
    let state = seed >>> 0;
    const uniform = () => {
      state = (state + 0x6d2b79f5) >>> 0;
      let t = Math.imul(state ^ (state >>> 15), state | 1);
      t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
      return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
    };
    return Array.from({ length: n }, () => {
      const [radius, angle] = [Math.sqrt(-2 * Math.log(1 - uniform())), 2 * Math.PI * uniform()];
      return [radius * Math.cos(angle), radius * Math.sin(angle)];
    });
  }

  /**
   * The path from `start`, a step for each pair of `normals`, `noise` times which joins the
   * gradient. It ends early where it has left for good: `far` from 0 in some parameter.
   */
  function descend(takeStep, { surface, start, normals, noise, far = 1000, ...numbers }) {
    const path = [{ theta: start, s: start.map(() => 0) }];
    for (const pair of normals) {
      const { theta, s } = path[path.length - 1];
      if (theta.some((ti) => Math.abs(ti) > far)) break;
      const g = surface.gradient(theta).map((gi, i) => gi + noise * pair[i]);
      path.push(takeStep({ theta, s, g, ...numbers }));
    }
    return path;
  }

  // The scene of the page. With steep = 38 SGD's limit, 2/38, lies a little above η = .05.
  const STEPS = 100;
  const START = 2.1; // from the minimum
  const NORMALS = normalPairs(STEPS, 103); // of 200 seeds one with which all end near the median

  /** The number that a slider means: two digits of a power of ten, but for noise and angle. */
  const twoDigits = (x) => Number((10 ** x).toPrecision(2));
  const meaning = {
    eta: twoDigits,
    rho: (x) => Number((1 - twoDigits(-x)).toFixed(5)),
    eps: twoDigits,
    noise: Number,
    degrees: Number,
  };

  /** After how many steps half of a gradient is forgotten. */
  const halfLife = (rho) => (rho > 0 ? Math.LN2 / -Math.log(rho) : 0);
  const largestStep = (rho) => 1 / Math.sqrt(1 - rho);

  /** The surface and the three paths, all from one point and with one noise. */
  function scene({ eta, rho, eps, noise, degrees }) {
    const surface = ravine({ steep: 38, ratio: 100, degrees });
    const turn = ((degrees - 30) * Math.PI) / 180; // the start turns with the ravine
    const start = [-START * Math.cos(turn), -START * Math.sin(turn)];
    const given = { surface, start, normals: NORMALS, noise, eta, rho, eps };
    const paths = {
      SGD: descend(sgdStep, given),
      Adagrad: descend(adagradStep, given),
      RMSProp: descend(rmspropStep, given),
    };
    return { surface, start, paths };
  }

  return {
    STEPS, rmspropStep, adagradStep, sgdStep, ravine, normalPairs, descend,
    meaning, halfLife, largestStep, scene,
  };
});
