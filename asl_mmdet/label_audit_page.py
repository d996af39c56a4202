"""The page on which suspected labels are looked at and decided: one file that opens from disk, without network."""

from collections.abc import Sequence

from .report.page import embedded_json

DECISIONS = {
    # Label in the file: what ticking says, and the decision that it becomes.
    0: ('it is there: add it', 'positive'),
    1: ('it is not there: remove it', 'negative'),
}


def audit_page(
    title: str, notes: Sequence[str], suspects: Sequence[dict], thumbnails: dict[str, str], earlier: Sequence[list[str]]
) -> str:
    """HTML, with no link to anything outside it, that lists suspects and saves ``corrections.csv``.

    What is ticked survives a reload in the browser's local storage, under the contents of the page.

    Args:
        title, notes: plain text, one paragraph a note.
        suspects: ``image``, ``class``, ``label`` (0 or 1), ``rank``, ``p_mean``, ``p_std``, ``limit``, ``suspicion``.
        thumbnails: image to a ``data:`` address.
        earlier: ``[image, class, decision]`` of corrections that the labels have already; the saved file holds them,
            too, unless the page decides otherwise.
    """
    data = dict(
        title=title, notes=notes, suspects=suspects, thumbnails=thumbnails, earlier=earlier, decisions=DECISIONS
    )
    return _PAGE.replace('DATA', embedded_json(data), 1)


_PAGE = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
      content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Label audit</title>
<link rel="icon" href="data:,">
<style>
  :root { color-scheme: light dark; --line: #8885; --soft: #8882; --add: #1a7f37; --drop: #b35900; }
  html { scroll-padding-top: 6rem; }  /* below the bar that stays */
  body { margin: 0; font: 15px/1.45 system-ui, sans-serif; }
  header, main { padding: 0 1rem; max-width: 90rem; margin: auto; }
  h1 { font-size: 1.3rem; margin: 1rem 0 .3rem; overflow-wrap: anywhere; }
  header p { margin: .2rem 0; max-width: 75ch; overflow-wrap: anywhere; }
  nav { position: sticky; top: 0; z-index: 1; background: Canvas; border-bottom: 1px solid var(--line);
        padding: .6rem 1rem; display: flex; flex-wrap: wrap; gap: .5rem 1rem; align-items: center; }
  nav > :last-child { margin-left: auto; }
  button, select { font: inherit; padding: .25rem .6rem; }
  main { display: grid; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); gap: .8rem; padding-block: 1rem; }
  article { border: 1px solid var(--line); border-radius: 6px; overflow: hidden;
            content-visibility: auto; contain-intrinsic-size: auto 21rem; }
  article[hidden] { display: none; }
  article.decided { outline: 3px solid var(--add); }
  article img { display: block; width: 100%; height: 9rem; object-fit: contain; background: var(--soft); }
  article div { padding: .4rem .6rem .6rem; }
  article b { overflow-wrap: anywhere; }
  .name { font-size: .8rem; opacity: .75; overflow-wrap: anywhere; }
  .label-0 { color: var(--add); } .label-1 { color: var(--drop); }
  dl { display: grid; grid-template-columns: auto 1fr; gap: 0 .6rem; margin: .3rem 0; font-size: .85rem;
       font-variant-numeric: tabular-nums; }
  dd { margin: 0; text-align: right; }
  label { display: block; }
  @media (prefers-color-scheme: dark) { :root { --add: #3fb950; --drop: #f0883e; } }
</style>
<body inert>
<header><h1></h1></header>
<nav>
  <label style="display:inline">Labels <select id="kind">
    <option value="">all</option>
    <option value="0">missing positives</option>
    <option value="1">doubtful positives</option>
  </select></label>
  <label style="display:inline">Class <select id="class"><option value="">all</option></select></label>
  <label style="display:inline"><input type="checkbox" id="open"> undecided only</label>
  <span id="shown" role="status"></span>
  <span><span id="count"></span> <button id="save">Save corrections.csv</button></span>
</nav>
<main></main>
<script type="application/json" id="data">DATA</script>
<script>
'use strict';
const data = JSON.parse(document.getElementById('data').textContent);
const byId = id => document.getElementById(id);
const make = (tag, text, parent, name) => {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (name) node.className = name;
  parent.append(node);
  return node;
};

let hash = 0;
for (const letter of JSON.stringify([data.title, data.notes, data.suspects])) {
  hash = (Math.imul(hash, 31) + letter.codePointAt(0)) | 0;
}
const shelf = 'asl_mmdet label audit ' + hash;
let chosen = {};  // number of the suspect: decision

document.querySelector('h1').textContent = data.title;
for (const note of data.notes) make('p', note, document.querySelector('header'));
for (const name of [...new Set(data.suspects.map(one => one.class))].sort()) {
  make('option', name, byId('class')).value = name;
}

const cards = data.suspects.map((one, number) => {
  const card = make('article', undefined, document.querySelector('main'));
  const picture = make('img', undefined, card);
  picture.alt = one.image;
  picture.src = data.thumbnails[one.image];
  const box = make('div', undefined, card);
  make('b', one.class, box);
  make('span', one.label ? ' labelled, doubtful' : ' not labelled, suspected', box, 'label-' + one.label);
  make('div', one.image, box, 'name').style.padding = 0;
  const values = make('dl', undefined, box);
  for (const [term, value] of [
    ['rank', one.rank],
    ['p', one.p_mean.toFixed(3) + ' \\u00b1 ' + one.p_std.toFixed(3)],
    [one.label ? 'mean p of negatives' : 'p*', one.limit.toFixed(3)],
    ['suspicion', one.suspicion.toFixed(3)],
  ]) {
    make('dt', term, values);
    make('dd', value, values);
  }
  const [say, decision] = data.decisions[one.label];
  const boxes = [[say, decision], ['nobody can tell: unknown', 'unknown']].map(([text, choice]) => {
    const line = make('label', undefined, box);
    const tick = make('input', undefined, line);
    tick.type = 'checkbox';
    tick.value = choice;
    line.append(' ' + text);
    tick.addEventListener('change', () => {
      if (tick.checked) chosen[number] = choice; else delete chosen[number];
      try { localStorage.setItem(shelf, JSON.stringify(chosen)); } catch { /* choices last until a reload */ }
      draw(number);
      count();
    });
    return tick;
  });
  return { card, boxes };
});

function draw(number) {
  const { card, boxes } = cards[number];
  for (const tick of boxes) tick.checked = chosen[number] === tick.value;
  card.classList.toggle('decided', number in chosen);
}

function filter() {
  const kind = byId('kind').value, name = byId('class').value, open = byId('open').checked;
  let shown = 0;
  data.suspects.forEach((one, number) => {
    const fits = (!kind || kind === String(one.label)) && (!name || name === one.class) && !(open && number in chosen);
    cards[number].card.hidden = !fits;
    shown += fits;
  });
  byId('shown').textContent = `${shown} of ${data.suspects.length} shown`;
}

function count() {
  const number = Object.keys(chosen).length;
  byId('count').textContent = `${number} decided` + (data.earlier.length ? `, ${data.earlier.length} earlier` : '');
}

function corrections() {
  const rows = new Map(data.earlier.map(row => [JSON.stringify(row.slice(0, 2)), row]));
  for (const [number, decision] of Object.entries(chosen)) {
    const one = data.suspects[number], row = [one.image, one.class, decision];
    rows.set(JSON.stringify(row.slice(0, 2)), row);
  }
  const cell = text => /[",\\r\\n]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text;
  return [['image', 'class', 'decision'], ...rows.values()].map(row => row.map(cell).join(',') + '\\n').join('');
}

byId('save').addEventListener('click', () => {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([corrections()], { type: 'text/csv' }));
  link.download = 'corrections.csv';
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
});
for (const id of ['kind', 'class', 'open']) byId(id).addEventListener('change', filter);
// A busy Chromium has no storage for a page that it has not drawn yet: reads find nothing, and what is written is lost.
requestAnimationFrame(() => requestAnimationFrame(() => {
  try { chosen = JSON.parse(localStorage.getItem(shelf)) || {}; } catch { /* no storage */ }
  cards.forEach((_, number) => draw(number));
  filter();
  count();
  document.body.inert = false;
}));
</script>
</body>
</html>
"""
