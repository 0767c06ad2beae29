// The math of the page “Play with RMSProp”, without any drawing. tests/docs/test_play.py runs this file
// in Node and compares the results with the library and with Optax, in float64.
(function (root, make) {
  if (typeof module === "object") module.exports = make();
  else root.rmspropMaths = make();
})(this, function () {
  "use strict";

  // As in rmsprop_jax/_optimizer: with the smallest normal number in the denominator, 0/0 is 0, and
  // a gradient is clipped so that its square is finite.
  const TINY = 2.2250738585072014e-308;
  const LARGEST = 1e154;
  const clip = (g) => Math.max(-LARGEST, Math.min(LARGEST, g));
  const denominator = (s, eps) => Math.sqrt(s + TINY) + Math.max(eps, TINY);

  /** Take a step with the new s. Return θ, s, the step, and the rate η/(√s + ε). */
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

  /** Return a loss: half the curvature × the squared distance, along the ravine and across it. */
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

  /** Return `n` pairs of normal numbers from a seed (mulberry32, Box and Muller). */
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
   * Return the path from `start`, with one step per pair of `normals`. A pair × `noise` is added to
   * the gradient. The path ends early if a parameter is `far` from 0.
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

  // The scene of the page. With steep = 38, SGD's limit, 2/38, is a little above η = 0.05.
  const STEPS = 100;
  const START = 2.1; // from the minimum
  const NORMALS = normalPairs(STEPS, 103); // one of 200 seeds: all three end near their median

  /** The value of a slider: a power of ten with two digits, except for noise and angle. */
  const twoDigits = (x) => Number((10 ** x).toPrecision(2));
  const meaning = {
    eta: twoDigits,
    rho: (x) => Number((1 - twoDigits(-x)).toFixed(5)),
    eps: twoDigits,
    noise: Number,
    degrees: Number,
  };

  /** Return the steps after which a gradient has half of its weight. */
  const halfLife = (rho) => (rho > 0 ? Math.LN2 / -Math.log(rho) : 0);
  const largestStep = (rho) => 1 / Math.sqrt(1 - rho);

  /** Return the surface and the three paths, from the same point and with the same noise. */
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
