// The page “Play with RMSProp”: it turns the sliders into three drawings. The math is in rmsprop.js.
(function () {
  "use strict";

  const maths = window.rmspropMaths;
  const root = document.getElementById("play");
  if (!root || !maths) return;
  const find = (id) => document.getElementById("play-" + id);
  const names = ["SGD", "Adagrad", "RMSProp"]; // the last is drawn on top
  const sliders = Object.fromEntries(
    ["eta", "rho", "eps", "degrees", "noise", "steps"].map((name) => [name, find(name)]),
  );
  const short = (x) => String(Number(x.toPrecision(3)));

  // Drawing

  /** Add an SVG element with these attributes to `parent`. */
  function add(parent, tag, attributes, text = "") {
    const element = document.createElementNS(parent.namespaceURI, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.textContent = text;
    parent.append(element);
    return element;
  }
  const join = (points) => points.map((p) => p.map((v) => v.toFixed(1)).join(",")).join(" ");
  const dots = (points) => points.map((p) => `M${p.map((v) => v.toFixed(1)).join(",")}h0`).join("");

  const [LEFT, TOP, SIDE] = [-2.6, 1.3, 3.4]; // the visible range of θ₁ and θ₂
  const toPixels = ([x, y]) => [((x - LEFT) / SIDE) * 400, ((TOP - y) / SIDE) * 400];
  const ENDS = {
    SGD: "M6,0A6,6 0 1 1 -6,0A6,6 0 1 1 6,0Z",
    Adagrad: "M-5.5,-5.5h11v11h-11Z",
    RMSProp: "M0,-7L7,5H-7Z",
  };

  function drawPaths({ surface, start, paths }, steps) {
    const svg = find("paths");
    svg.replaceChildren();
    const [x0, y0] = toPixels([0, 0]);
    const turned = add(svg, "g", {
      class: "grid",
      transform: `translate(${x0} ${y0}) rotate(${-surface.degrees})`,
    });
    for (const along of [0.3, 0.7, 1.3, 2.1, 3.2, 4.7, 6.6, 9, 12, 16, 21, 27]) {
      const across = along * Math.sqrt(surface.flat / surface.steep);
      const [rx, ry] = [along, across].map((r) => (r / SIDE) * 400);
      add(turned, "ellipse", { rx, ry });
    }
    add(svg, "path", { class: "axis", d: `M0,${y0}H400M${x0},0V400`, "stroke-opacity": 0.5 });
    add(svg, "text", { x: 380, y: y0 + 16 }, "θ₁");
    add(svg, "text", { x: x0 + 6, y: 14 }, "θ₂");
    for (const name of names) {
      const points = paths[name].slice(0, steps + 1).map((state) => toPixels(state.theta));
      const group = add(svg, "g", { class: name });
      add(group, "polyline", { class: "line", points: join(points), "stroke-opacity": 0.7 });
      add(group, "path", { class: "dots", d: dots(points) });
    }
    const [x, y] = toPixels(start);
    add(svg, "circle", { class: "start", cx: x, cy: y, r: 6 });
    for (const name of names) {
      const path = paths[name].slice(0, steps + 1);
      const [x, y] = toPixels(path[path.length - 1].theta);
      const group = add(svg, "g", { class: name });
      add(group, "path", { class: "end", d: ENDS[name], transform: `translate(${x} ${y})` });
    }
  }

  const PLOT = { left: 46, right: 390, top: 8, bottom: 168 };
  const stepToX = (t) => PLOT.left + (t / maths.STEPS) * (PLOT.right - PLOT.left);

  /** Draw axes with decades from `low` to `high`. Return a function from a value to its height. */
  function axes(svg, low, high) {
    svg.replaceChildren();
    const height = (value) => {
      const part = (Math.log10(Math.max(value, 1e-300)) - low) / (high - low);
      return PLOT.bottom - Math.max(-1, Math.min(2, part)) * (PLOT.bottom - PLOT.top);
    };
    for (let decade = low; decade <= high; decade++) {
      const y = height(10 ** decade);
      add(svg, "path", { class: "grid", d: `M${PLOT.left},${y}H${PLOT.right}` });
      if ((high - decade) % Math.ceil((high - low) / 5)) continue;
      const text = decade < -3 || decade > 3 ? `1e${decade}` : short(10 ** decade);
      add(svg, "text", { x: PLOT.left - 6, y: y + 4, "text-anchor": "end" }, text);
    }
    for (const t of [0, 25, 50, 75, 100]) {
      const anchor = t === maths.STEPS ? "end" : "middle";
      const text = t === 50 ? "step 50" : String(t);
      add(svg, "text", { x: stepToX(t), y: PLOT.bottom + 18, "text-anchor": anchor }, text);
    }
    return height;
  }

  /** Draw one line per parameter, the second one dashed, within the axes. */
  function drawLines(svg, name, height, states, values) {
    const { left: x, right, top: y, bottom } = PLOT;
    const box = { x, y, width: right - x, height: bottom - y };
    const viewBox = Object.values(box).join(" ");
    const group = add(svg, "svg", { class: name, ...box, viewBox });
    for (const i of name === "SGD" ? [0] : [0, 1]) {
      const points = states.map((state, t) => [stepToX(t + 1), height(values(state)[i])]);
      add(group, "polyline", { class: i ? "line second" : "line", points: join(points) });
    }
  }

  function drawRates({ paths }, steps, { eta }) {
    const rates = names.flatMap((name) => paths[name].slice(1).flatMap((state) => state.rate));
    const logs = rates.map((rate) => Math.log10(rate / eta)); // SGD has 0
    const high = Math.min(3, Math.max(...logs)) + Math.log10(eta);
    const low = Math.max(-5, Math.min(...logs)) + Math.log10(eta);
    const height = axes(find("rates"), Math.floor(low), Math.ceil(high + 1e-9));
    for (const name of names) {
      const states = paths[name].slice(1, steps + 1);
      drawLines(find("rates"), name, height, states, (state) => state.rate);
    }
  }

  function drawLengths({ paths }, steps, { eta, rho }) {
    const svg = find("lengths");
    const height = axes(svg, -2, 2);
    const lengths = (state) => state.step.map((step) => Math.abs(step) / eta);
    drawLines(svg, "RMSProp", height, paths.RMSProp.slice(1, steps + 1), lengths);
    const bound = maths.largestStep(rho);
    const y = height(bound);
    add(svg, "path", { class: "bound", d: `M${PLOT.left},${y}H${PLOT.right}` });
    add(svg, "text", { x: PLOT.right, y: y - 6, "text-anchor": "end" }, `bound ${short(bound)}`);
  }

  // Texts

  function describe(values, limit) {
    const { eta, rho, eps, degrees, noise, steps } = values;
    const half = `a gradient loses half of its weight in ${short(maths.halfLife(rho))} steps`;
    const side = eta > limit ? "above" : "below";
    return {
      eta: `${eta}: about the length of a step, ${side} SGD's limit of ${short(limit)}`,
      rho: `${rho}: ` + (rho ? half : "only the last gradient counts"),
      eps: `${eps}: gradients below ${eps} take smaller steps`,
      degrees: `${degrees}° from the direction of θ₁`,
      noise: `${noise}: ` + (noise ? "the std of the noise in each gradient" : "none"),
      steps: `${steps} of ${maths.STEPS}`,
    };
  }

  function describeAll({ surface, paths }, values) {
    const words = describe(values, surface.limit);
    for (const [name, slider] of Object.entries(sliders)) {
      slider.nextElementSibling.value = words[name];
      slider.setAttribute("aria-valuetext", words[name].split(":")[0]);
    }
    const left = names.map((name) => {
      const path = paths[name];
      const state = path[values.steps];
      const text = state ? Math.hypot(...state.theta).toFixed(2) : "diverged";
      root.querySelector(`.legend .${name} b`).textContent = text;
      return `${name} ${state ? text + " from the minimum" : "has diverged"}`;
    });
    const last = (name, what) => {
      const state = paths[name][Math.min(values.steps, paths[name].length - 1)];
      const numbers = state[what] ? state[what].map((v) => short(Math.abs(v))) : ["none yet"];
      return numbers.join(" and ");
    };
    const label = (id, text) => find(id).setAttribute("aria-label", text);
    const after = `after ${values.steps} steps`;
    const bound = short(maths.largestStep(values.rho) * values.eta);
    const rates = names.map((name) => `${name} ${last(name, "rate")}`);
    label("paths", `Paths in the ravine ${after}: ${left.join(", ")}.`);
    label("rates", `Effective learning rates of θ₁ and θ₂ ${after}: ${rates.join(", ")}.`);
    const lengths = last("RMSProp", "step");
    label("lengths", `Lengths of RMSProp's steps ${after}: ${lengths}. The bound is ${bound}.`);
  }

  // Animation

  const STEPS_A_SECOND = 25;
  let playing = null; // identifies the current animation

  function read() {
    const number = (name) => maths.meaning[name](Number(sliders[name].value));
    const values = Object.fromEntries(Object.keys(maths.meaning).map((n) => [n, number(n)]));
    return { ...values, steps: Number(sliders.steps.value) };
  }

  function draw() {
    const values = read();
    const scene = maths.scene(values);
    drawPaths(scene, values.steps);
    drawRates(scene, values.steps, values);
    drawLengths(scene, values.steps, values);
    describeAll(scene, values);
  }

  function pause() {
    playing = null;
    find("run").textContent = "Play";
    sliders.steps.nextElementSibling.setAttribute("aria-live", "polite");
  }

  function play() {
    if (Number(sliders.steps.value) >= maths.STEPS) sliders.steps.value = 0;
    const run = { since: performance.now(), from: Number(sliders.steps.value) };
    const frame = (now) => {
      if (playing !== run) return;
      const steps = run.from + (Math.max(0, now - run.since) / 1000) * STEPS_A_SECOND;
      sliders.steps.value = Math.min(maths.STEPS, Math.floor(steps));
      draw();
      if (steps < maths.STEPS) requestAnimationFrame(frame);
      else pause();
    };
    playing = run;
    find("run").textContent = "Pause";
    sliders.steps.nextElementSibling.setAttribute("aria-live", "off"); // a screen reader would read every frame
    requestAnimationFrame(frame);
  }

  for (const slider of Object.values(sliders)) {
    slider.addEventListener("input", () => {
      if (slider === sliders.steps) pause();
      draw();
    });
  }
  find("run").addEventListener("click", () => (playing ? pause() : play()));
  find("reset").addEventListener("click", () => {
    pause();
    for (const slider of Object.values(sliders)) slider.value = slider.defaultValue;
    draw();
  });

  root.hidden = false;
  for (const slider of Object.values(sliders)) slider.value = slider.defaultValue; // a reload may restore others
  draw();
  if (!matchMedia("(prefers-reduced-motion: reduce)").matches) play();
})();
