'use strict';
const data = JSON.parse(document.getElementById('data').textContent);
const { about, classes, curves, overall } = data;
const COLOURS = ['#0b5cad', '#b3261e', '#15703a', '#8a5300', '#6f42c1', '#00738a', '#a3357e', '#57606a'];
const state = { chosen: null, at: 0, ratio: 1, sort: 'AP', descending: false, filter: '', limit: 200 };
const $ = (id) => document.getElementById(id);

function node(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}
function shape(tag, attributes = {}, text) {
  const made = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}
const whole = (value) => (value === null ? '–' : Math.round(value).toLocaleString('en'));
const fixed = (digits) => (value) => (value === null || !isFinite(value) ? '–' : value.toFixed(digits));
const percent = (value) => (value === null || !isFinite(value) ? '–' : (100 * value).toFixed(1));
const brief = (value) => (value === null ? '–' : String(Number(value.toPrecision(4))));
const sum = (values) => values.reduce((total, value) => total + value, 0);
const harmonic = (p, r) => (p + r ? (2 * p * r) / (p + r) : 0);

// ------------------------------------------------------------------------------------------------------- numbers
const columns = classes.names.map((_, i) => i);
const totals = {
  positives: sum(classes.positives),
  tp: curves.thresholds.map((_, t) => sum(curves.tp.map((row) => row[t]))),
  fp: curves.thresholds.map((_, t) => sum(curves.fp.map((row) => row[t]))),
};
// Counts and rates at a threshold: of a class, or (null) of all classes together.
function decision(chosen, t) {
  const [tp, fp, positives] = chosen === null
    ? [totals.tp[t], totals.fp[t], totals.positives]
    : [curves.tp[chosen][t], curves.fp[chosen][t], classes.positives[chosen]];
  const precision = tp / Math.max(tp + fp, 1);
  const recall = positives ? tp / positives : NaN;
  const fn = positives - tp;
  return { tp, fp, fn, precision, recall, f1: harmonic(precision, recall), cost: fp + state.ratio * fn };
}
function classMeans(t) {
  const present = columns.filter((i) => classes.positives[i]).map((i) => decision(i, t));
  const [p, r] = ['precision', 'recall'].map((key) => sum(present.map((one) => one[key])) / present.length);
  return { p, r, f1: harmonic(p, r) };
}
const f1OrLess = (one) => (isFinite(one.f1) ? one.f1 : -1);
function bestThreshold(chosen, quality) {
  let best = 0;
  curves.thresholds.forEach((_, t) => { if (quality(decision(chosen, t)) > quality(decision(chosen, best))) best = t; });
  return best;
}

// -------------------------------------------------------------------------------------------------------- charts
function ticks(low, high, number) {
  const step = 10 ** Math.floor(Math.log10((high - low) / number));
  const nice = [1, 2, 5, 10].map((factor) => factor * step).find((size) => (high - low) / size <= number) || step * 10;
  const found = [];
  for (let i = Math.ceil(low / nice - 1e-9); i * nice <= high + nice * 1e-9; i++) found.push(Number((i * nice).toPrecision(12)));
  return found;
}
// series: [{name, x, y, kind: 'line' | 'bars' | 'dots', colour, hidden}]; bars have one more edge in x than heights in y.
// logarithmic: y is drawn as log10(1 + y). mark: a vertical line. names: what is written of a point instead of its x.
function chart(host, { title, x, y, series, mark, logarithmic, names, pick, toggles }) {
  host.replaceChildren(node('h3', {}, title));
  const legend = node('div', { class: toggles ? 'legend toggles' : 'legend' });
  const readout = node('div', { class: 'readout' });
  const shown = series.filter((one) => !one.hidden && one.y.length);
  const height = 250, left = 64, right = 12, top = 8, bottom = 42;
  const width = Math.max(host.clientWidth, 260);
  const svg = shape('svg', { viewBox: `0 0 ${width} ${height}`, height, role: 'img', 'aria-label': title });
  const finite = (axis) => shown.flatMap((one) => one[axis]).filter((value) => value !== null && isFinite(value));
  const range = (axis, wanted) => {
    const values = finite(axis);
    let low = wanted.min ?? values.reduce((a, b) => Math.min(a, b), Infinity);
    let high = wanted.max ?? values.reduce((a, b) => Math.max(a, b), -Infinity);
    if (!isFinite(low) || !isFinite(high)) [low, high] = [0, 1];
    if (low === high) [low, high] = low === 0 ? [0, 1] : [low - Math.abs(low) / 2, low + Math.abs(low) / 2];
    const [first, second] = ticks(low, high, 5), size = second - first;
    if (axis === 'x' || logarithmic) return [low, high];
    return [wanted.min ?? Math.floor(low / size + 1e-9) * size, wanted.max ?? Math.ceil(high / size - 1e-9) * size];
  };
  const [x0, x1] = range('x', x), [y0, y1] = range('y', y);
  const raise = (value) => (logarithmic ? Math.log10(1 + value) : value);
  const px = (value) => left + ((value - x0) / (x1 - x0)) * (width - left - right);
  const py = (value) => height - bottom - ((raise(value) - raise(y0)) / (raise(y1) - raise(y0))) * (height - top - bottom);
  let levels = ticks(y0, y1, 5);
  if (logarithmic) levels = [0, ...Array.from({ length: 16 }, (_, i) => 10 ** i), y1].filter((level) => level === y1 || level < y1 / 1.6);
  for (const level of levels) {
    svg.append(shape('line', { x1: left, x2: width - right, y1: py(level), y2: py(level), stroke: '#e6eaee' }));
    svg.append(shape('text', { x: left - 6, y: py(level) + 4, 'text-anchor': 'end' }, level >= 10000 ? level.toExponential(0).replace('+', '') : brief(level)));
  }
  for (const place of ticks(x0, x1, Math.max(2, Math.min(10, Math.floor(width / 70))))) {
    svg.append(shape('line', { x1: px(place), x2: px(place), y1: height - bottom, y2: height - bottom + 4, stroke: '#8c959f' }));
    svg.append(shape('text', { x: px(place), y: height - bottom + 17, 'text-anchor': 'middle' }, brief(place)));
  }
  svg.append(shape('line', { x1: left, x2: width - right, y1: height - bottom, y2: height - bottom, stroke: '#8c959f' }));
  svg.append(shape('text', { x: (left + width - right) / 2, y: height - 6, 'text-anchor': 'middle' }, x.label));
  svg.append(shape('text', { transform: `translate(12 ${(top + height - bottom) / 2}) rotate(-90)`, 'text-anchor': 'middle' }, y.label));
  // What lies beyond the axes is cut off, but for half a dot.
  const inside = shape('svg', { x: left - 5, y: top - 5, width: width - left - right + 10, height: height - top - bottom + 10,
    viewBox: `${left - 5} ${top - 5} ${width - left - right + 10} ${height - top - bottom + 10}`, style: 'overflow: hidden' });
  svg.append(inside);
  series.forEach((one, i) => {
    const colour = one.colour || COLOURS[i % COLOURS.length];
    const key = node('span', {}, node('i'), one.name);
    key.firstChild.style.color = colour;
    if (one.hidden) key.className = 'off';
    if (toggles) key.onclick = () => { one.hidden = !one.hidden; chart(host, arguments[1]); };
    if (one.name) legend.append(key);
    if (one.hidden || !one.y.length) return;
    if (one.kind === 'bars') {
      const path = one.y.map((value, j) => `M${px(one.x[j])} ${py(0)}V${py(value)}H${px(one.x[j + 1])}V${py(0)}Z`).join('');
      inside.append(shape('path', { d: path, fill: colour, 'fill-opacity': 0.25, stroke: colour, 'stroke-width': one.y.length > 300 ? 0 : 1 }));
      const wide = px(one.x[1]) - px(one.x[0]);
      if (names && wide > 12) one.y.forEach((_, j) => inside.append(shape('text',
        { transform: `translate(${px(one.x[j]) + wide / 2 + 4} ${height - bottom - 6}) rotate(-90)`, class: 'name' }, names[j].slice(0, 28))));
    } else if (one.kind === 'dots') {
      one.y.forEach((value, j) => {
        if (value !== null && one.x[j] !== null) inside.append(shape('circle', { cx: px(one.x[j]), cy: py(value), r: 4, fill: colour, 'fill-opacity': 0.45 }));
      });
    } else {
      let path = '', pen = 'M';
      one.y.forEach((value, j) => {
        if (value === null || one.x[j] === null) { pen = 'M'; return; }
        path += `${pen}${px(one.x[j]).toFixed(1)} ${py(value).toFixed(1)}`;
        pen = 'L';
      });
      inside.append(shape('path', { d: path, fill: 'none', stroke: colour, 'stroke-width': 2, 'stroke-linejoin': 'round', 'stroke-dasharray': one.dash || 'none' }));
      if (one.y.length === 1 && one.y[0] !== null) inside.append(shape('circle', { cx: px(one.x[0]), cy: py(one.y[0]), r: 3.5, fill: colour }));
    }
  });
  if (mark !== undefined) inside.append(shape('line', { x1: px(mark), x2: px(mark), y1: top, y2: height - bottom, stroke: '#1b1f24', 'stroke-dasharray': '4 3' }));
  const nearest = (event) => {
    const box = svg.getBoundingClientRect();
    const mx = ((event.clientX - box.left) * width) / box.width, my = event.clientY - box.top;
    let found = null;
    for (const one of names ? shown.slice(0, 1) : shown) one.y.forEach((value, j) => {
      if (value === null || one.x[j] === null) return;
      const middle = one.kind === 'bars' ? (one.x[j] + one.x[j + 1]) / 2 : one.x[j];
      const distance = Math.hypot(px(middle) - mx, one.kind === 'dots' || !names ? (py(value) - my) * (one.kind === 'bars' ? 0.1 : 1) : 0);
      if (!found || distance < found.distance) found = { one, j, distance };
    });
    return found;
  };
  svg.onmousemove = (event) => {
    const found = nearest(event);
    if (!found) return;
    const { one, j } = found;
    const place = names ? names[j] : one.kind === 'bars' ? `${brief(one.x[j])} to ${brief(one.x[j + 1])}` : `${x.label} ${brief(one.x[j])}`;
    readout.textContent = `${place}: ${one.name || y.label} ${brief(one.y[j])}` + (one.note ? ` (${one.note[j]})` : '');
  };
  svg.onmouseleave = () => { readout.textContent = ''; };
  if (pick) {
    svg.style.cursor = 'pointer';
    svg.onclick = (event) => { const found = nearest(event); if (found) pick(found.j); };
  }
  host.append(legend, svg, readout);
}
// For the charts that have a host in the page already.
const draw = (id, what) => chart($(id), what);

// ---------------------------------------------------------------------------------------------- threshold and cost
function drawDecision() {
  const { chosen, at } = state;
  const threshold = curves.thresholds[at];
  const name = chosen === null ? 'all classes together' : classes.names[chosen];
  $('threshold-value').textContent = brief(threshold);
  $('scope').textContent = chosen === null ? '' : name;
  $('scope').title = name;
  $('all-classes').hidden = chosen === null;
  const now = decision(chosen, at);
  const tiles = [['precision, %', percent(now.precision)], ['recall, %', percent(now.recall)], ['F1, %', percent(now.f1)],
    ['false positives', whole(now.fp)], ['missed positives', whole(now.fn)], ['cost', brief(now.cost)]];
  if (chosen === null) {
    const mean = classMeans(at);
    tiles.push(['CP, %', percent(mean.p)], ['CR, %', percent(mean.r)], ['CF1, %', percent(mean.f1)]);
  }
  $('counts').replaceChildren(...tiles.map(([label, value]) => node('div', { 'data-name': label }, node('span', {}, label), node('b', {}, value))));
  const every = curves.thresholds.map((_, t) => decision(chosen, t));
  const axis = { label: 'threshold (score)', min: 0, max: 1 };
  const rate = { label: '%', min: 0, max: 100 };
  const line = (label, key) => ({ name: label, x: curves.thresholds, y: every.map((one) => (isFinite(one[key]) && (key !== 'precision' || one.tp + one.fp) ? 100 * one[key] : null)) });
  draw('by-threshold', { title: `Precision, recall and F1, ${name}`, x: axis, y: rate, mark: threshold,
    series: [line('precision', 'precision'), line('recall', 'recall'), line('F1', 'f1')] });
  // Predicting nothing costs all positives; what costs far more than that is out of the picture.
  const dearest = every.reduce((most, one) => Math.max(most, one.cost), 0), nothing = state.ratio * (now.tp + now.fn);
  draw('cost', { title: `Cost, ${name}`, x: axis, y: { label: 'cost (false positives)', min: 0, max: (nothing && Math.min(dearest, 2 * nothing)) || dearest || 1 }, mark: threshold,
    series: [
      { name: 'cost', x: curves.thresholds, y: every.map((one) => one.cost), colour: '#1b1f24' },
      { name: 'false positives', x: curves.thresholds, y: every.map((one) => one.fp), colour: COLOURS[1], dash: '5 3' },
      { name: 'missed, weighted', x: curves.thresholds, y: every.map((one) => state.ratio * one.fn), colour: COLOURS[3], dash: '5 3' }] });
  const pr = chosen === null ? overall.pr : curves.pr[chosen];
  draw('precision-recall', { title: `Precision and recall, ${name}`, x: { label: 'recall (%)', min: 0, max: 100 }, y: { ...rate, label: 'precision (%)' },
    series: [{ name: '', x: pr.recall.map((v) => 100 * v), y: pr.precision.map((v) => 100 * v), note: pr.threshold.map((v) => `threshold ${brief(v)}`) },
      { name: `at ${brief(threshold)}`, kind: 'dots', colour: '#1b1f24', x: [isFinite(now.recall) ? 100 * now.recall : null], y: [now.tp + now.fp ? 100 * now.precision : null] }] });
  const counts = chosen === null ? overall.histograms : curves.histograms[chosen];
  draw('histogram', { title: `Scores, ${name}`, x: { ...axis, label: 'score' }, y: { label: 'number (logarithmic)', min: 0 }, logarithmic: true, mark: threshold,
    series: [{ name: about.right, kind: 'bars', x: curves.edges, y: counts[0] }, { name: about.wrong, kind: 'bars', x: curves.edges, y: counts[1] }] });
}

// --------------------------------------------------------------------------------------------------------- classes
const ap = classes.average_precision;
const TABLE = [
  { key: 'class', label: 'class', value: (i) => classes.names[i], format: String, hint: 'name' },
  { key: 'positives', label: 'positives', value: (i) => classes.positives[i], format: whole, hint: about.positives },
  ...Object.keys(ap).map((key) => ({ key, label: `${key}, %`, value: (i) => ap[key][i], format: percent, hint: 'average precision' })),
  { key: 'P', label: 'P, %', value: (i) => decision(i, state.at).precision, format: percent, live: true, hint: 'precision at the threshold' },
  { key: 'R', label: 'R, %', value: (i) => decision(i, state.at).recall, format: percent, live: true, hint: 'recall at the threshold' },
  { key: 'F1', label: 'F1, %', value: (i) => decision(i, state.at).f1, format: percent, live: true, hint: 'F1 at the threshold' },
  { key: 'FP', label: 'FP', value: (i) => decision(i, state.at).fp, format: whole, live: true, hint: 'false positives at the threshold' },
  { key: 'missed', label: 'missed', value: (i) => decision(i, state.at).fn, format: whole, live: true, hint: 'missed positives at the threshold' },
  { key: 'best_f1', label: 'best F1, %', value: (i) => classes.best_f1[i], format: percent, hint: 'the highest F1 that a threshold of its own gives the class' },
  { key: 'best_threshold', label: 'at', value: (i) => classes.best_threshold[i], format: fixed(3), hint: 'that threshold' },
  { key: 'p_pos', label: 'p_t+', value: (i) => classes.probabilities[i][0], format: fixed(3), hint: 'eq. 9: mean p of positives' },
  { key: 'p_neg', label: 'p_t-', value: (i) => classes.probabilities[i][1], format: fixed(3), hint: 'eq. 9: mean 1 - p of negatives' },
  { key: 'gap', label: 'gap', value: (i) => classes.gap[i], format: fixed(3), hint: 'eq. 10: p_t+ - p_t-' },
];
function order(a, b) {
  if (typeof a === 'string') return a.localeCompare(b);
  const known = (v) => v !== null && isFinite(v);
  return known(a) && known(b) ? a - b : 0;
}
function sortedClasses(key, descending) {
  const { value } = TABLE.find((column) => column.key === key);
  const values = columns.map(value);
  const undefinedLast = (v) => (v === null || (typeof v === 'number' && !isFinite(v)) ? 1 : 0);
  return [...columns].sort((a, b) => undefinedLast(values[a]) - undefinedLast(values[b])
    || (descending ? -1 : 1) * order(values[a], values[b]) || a - b);
}
function drawTable() {
  $('head').replaceChildren(...TABLE.map((column) => {
    const button = node('button', { type: 'button', title: column.hint }, column.label);
    button.onclick = () => {
      state.descending = state.sort === column.key ? !state.descending : column.key !== 'class';
      state.sort = column.key;
      drawTable();
    };
    const sort = state.sort !== column.key ? 'none' : state.descending ? 'descending' : 'ascending';
    return node('th', { scope: 'col', 'aria-sort': sort, 'data-key': column.key }, button);
  }));
  const wanted = state.filter.toLowerCase();
  const found = sortedClasses(state.sort, state.descending).filter((i) => classes.names[i].toLowerCase().includes(wanted));
  $('rows').replaceChildren(...found.slice(0, state.limit).map((i) => {
    const cells = TABLE.map(({ key, value, format }) => {
      const cell = node('td', { 'data-key': key }, format(value(i)));
      if (key === 'AP' && ap.AP[i] !== null) { cell.className = 'bar'; cell.style.backgroundSize = `${100 * ap.AP[i]}% 3px`; }
      if (key === 'class') cell.title = classes.names[i];
      return cell;
    });
    const row = node('tr', { tabindex: 0, 'data-class': i }, ...cells);
    if (i === state.chosen) row.className = 'chosen';
    row.onclick = () => choose(i, true);
    row.onkeydown = (event) => { if (event.key === 'Enter') choose(i, true); };
    return row;
  }));
  $('shown').textContent = `${whole(Math.min(found.length, state.limit))} shown of ${whole(found.length)} that match, ${whole(columns.length)} in all`;
  $('more').hidden = found.length <= state.limit;
}
function drawSortedPrecision() {
  const sorted = sortedClasses('AP', true).filter((i) => ap.AP[i] !== null);
  draw('sorted-ap', { title: `Average precision of the classes, sorted; mean ${percent(sum(sorted.map((i) => ap.AP[i])) / sorted.length)} %`,
    x: { label: 'classes', min: 0, max: Math.max(sorted.length, 1) }, y: { label: 'AP (%)', min: 0, max: 100 },
    names: sorted.map((i) => classes.names[i]), pick: (j) => choose(sorted[j], false),
    series: [{ name: '', kind: 'bars', x: [...sorted.map((_, j) => j), sorted.length], y: sorted.map((i) => 100 * ap.AP[i]) }] });
}
function choose(i, scroll) {
  state.chosen = i;
  drawDecision();
  drawTable();
  if (scroll) $('decision').scrollIntoView();
}

// ------------------------------------------------------------------------------------------- gap, training, pictures
function drawGap() {
  const [pos, neg] = overall.probabilities;
  $('gap-values').replaceChildren(...[['p_t+', pos], ['p_t-', neg], ['gap', overall.gap]].map(([label, value]) =>
    node('div', { 'data-name': label }, node('span', {}, label), node('b', {}, fixed(4)(value)))));
  draw('gap-chart', { title: 'Gap by class', x: { label: 'p_t-, mean 1 - p of negatives', min: 0, max: 1 }, y: { label: 'p_t+, mean p of positives', min: 0, max: 1 },
    names: classes.names, pick: (j) => choose(j, true), series: [
      { name: 'classes', kind: 'dots', x: classes.probabilities.map((p) => p[1]), y: classes.probabilities.map((p) => p[0]) },
      { name: 'gap 0', x: [0, 1], y: [0, 1], colour: '#8c959f', dash: '4 3' }] });
}
function drawTraining() {
  $('training-text').textContent = data.training.text;
  const hosts = data.training.charts.map(() => node('div', { class: 'chart' }));
  $('training-charts').replaceChildren(...hosts);
  data.training.charts.forEach((panel, i) => chart(hosts[i], { title: panel.title, x: { label: panel.x }, y: { label: panel.y },
    series: panel.series, toggles: panel.series.length > 1 }));
}
const isPredicted = (score) => score >= curves.thresholds[state.at];
function verdict(score, truth) {
  if (truth === null) return isPredicted(score) ? 'unknown' : null;
  if (truth) return isPredicted(score) ? 'right' : 'missed';
  return isPredicted(score) ? 'wrong' : null;
}
function outlined(frame, picture, [left, top, width, height], kind, text, dash) {
  const attributes = { x: left, y: top, width, height, fill: 'none', stroke: 'currentColor', class: kind,
    'stroke-width': 2, 'vector-effect': 'non-scaling-stroke' };
  if (dash) attributes['stroke-dasharray'] = '5 4';
  frame.append(shape('rect', attributes));
  if (text) {
    // The drawing has the picture's own pixels; text keeps its size on the screen.
    const size = Math.max(picture.width, picture.height) / 24;
    const label = shape('text', { x: left, y: Math.max(top - size / 4, size), class: kind, fill: 'currentColor' }, text);
    label.style.fontSize = `${size}px`;
    label.style.strokeWidth = `${size / 4}px`;
    frame.append(label);
  }
}
function card(picture) {
  const frame = node('div', { class: 'frame' });
  frame.append(picture.source ? node('img', { src: picture.source, alt: picture.name }) : node('span', { class: 'unreadable' }, 'The file could not be read.'));
  const chips = node('div', { class: 'chips' });
  const chip = (kind, text) => chips.append(node('span', { class: kind }, text));
  if (picture.labels) {
    for (const [i, score, truth] of picture.labels) {
      const kind = verdict(score, truth);
      if (kind) chip(kind, `${{ right: '✓', wrong: '✗', missed: '○', unknown: '?' }[kind]} ${classes.names[i]} ${fixed(2)(score)}`);
    }
  } else {
    const drawing = shape('svg', { viewBox: `0 0 ${picture.width} ${picture.height}`, preserveAspectRatio: 'none' });
    let [right, wrong, missed] = [0, 0, 0];
    for (const [i, score, crowd, ...box] of picture.objects) {
      const found = score !== null && isPredicted(score);
      if (!found && !crowd) missed++;
      outlined(drawing, picture, box, crowd ? 'unknown' : found ? 'right' : 'missed', found ? '' : classes.names[i], true);
    }
    for (const [i, score, truth, ...box] of picture.boxes) {
      const kind = verdict(score, truth);
      if (!isPredicted(score)) continue;
      if (kind === 'right') right++;
      if (kind === 'wrong') wrong++;
      outlined(drawing, picture, box, kind, `${classes.names[i]} ${fixed(2)(score)}`, false);
    }
    if (picture.source) frame.append(drawing);
    chip('right', `✓ ${right} found`);
    chip('wrong', `✗ ${wrong} wrong`);
    chip('missed', `○ ${missed} missed`);
  }
  return node('figure', { 'data-name': picture.name }, frame, node('figcaption', {}, `${picture.name}, Brier score ${brief(picture.brier)}`), chips);
}
function drawPictures() {
  for (const which of ['worst', 'best']) $(which).replaceChildren(...data.pictures[which].map(card));
}

// --------------------------------------------------------------------------------------------------- start, controls
function moveTo(t) {
  state.at = t;
  $('slider').value = t;
  drawDecision();
  drawTable();
  drawPictures();
}
$('title').textContent = about.title;
$('about').textContent = about.text;
$('metrics').append(...data.metrics.map(([name, value]) => node('div', {}, node('dt', {}, name), node('dd', {}, brief(value)))));
$('decision-text').textContent = about.decision;
$('classes-text').textContent = about.classes;
$('gap-text').textContent = about.gap;
$('pictures-text').textContent = about.pictures;
$('slider').max = curves.thresholds.length - 1;
$('slider').oninput = (event) => moveTo(Number(event.target.value));
$('ratio').oninput = (event) => {
  const ratio = Number(event.target.value);
  if (event.target.value !== '' && ratio >= 0 && isFinite(ratio)) { state.ratio = ratio; drawDecision(); }
};
$('best-f1').onclick = () => moveTo(bestThreshold(state.chosen, f1OrLess));
$('lowest-cost').onclick = () => moveTo(bestThreshold(state.chosen, (one) => -one.cost));
$('all-classes').onclick = () => choose(null, false);
$('filter').oninput = (event) => { state.filter = event.target.value; state.limit = 200; drawTable(); };
$('more').onclick = () => { state.limit += 200; drawTable(); };
function drawAll() {
  drawDecision();
  drawTable();
  drawSortedPrecision();
  drawGap();
  drawTraining();
}
let drawnWidth = innerWidth;
addEventListener('resize', () => { if (innerWidth !== drawnWidth) { drawnWidth = innerWidth; drawAll(); } });
drawSortedPrecision();
drawGap();
drawTraining();
moveTo(bestThreshold(null, f1OrLess));
