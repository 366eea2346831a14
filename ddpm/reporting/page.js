'use strict';

// A slider in place of the row of grids.
function addSlider(list) {
  const items = [...list.children];
  if (items.length < 2) return;
  const box = document.createElement('div');
  box.className = 'slider';
  const input = document.createElement('input');
  Object.assign(input, {type: 'range', min: 0, max: items.length - 1});
  input.value = items.length - 1;
  input.setAttribute('aria-label', 'Training step');
  const text = document.createElement('span');
  const show = () => {
    items.forEach((item, i) => item.classList.toggle('here', i == input.value));
    text.textContent = items[input.value].querySelector('figcaption').textContent;
    input.setAttribute('aria-valuetext', text.textContent);
  };
  input.addEventListener('input', show);
  box.append(input, text);
  list.before(box);
  list.classList.add('sliding');
  list.removeAttribute('tabindex');
  show();
}

// The values of the point that is nearest to the pointer or the finger.
function addReading(figure) {
  const points = [...figure.querySelectorAll('.points use')];
  const reading = document.createElement('span');
  reading.className = 'reading';
  figure.querySelector('div').after(reading);
  const read = (event) => {
    let near, least = Infinity;
    for (const point of points) {
      const box = point.getBoundingClientRect();
      const distance = Math.hypot(
          box.x + box.width / 2 - event.clientX,
          box.y + box.height / 2 - event.clientY);
      if (distance < least) [near, least] = [point, distance];
    }
    points.forEach((point) => point.classList.toggle('near', point == near));
    if (near) reading.textContent = near.querySelector('title').textContent;
  };
  figure.querySelector('svg').addEventListener('pointermove', read);
  figure.querySelector('svg').addEventListener('pointerdown', read);
}

function enhance() {
  document.querySelectorAll('.steps').forEach(addSlider);
  document.querySelectorAll('.chart').forEach(addReading);
}

// What a reader has opened, moved or focused stays so.
function replaceMain(next) {
  const main = document.querySelector('main');
  const opened = [...main.querySelectorAll('details')].map((d) => d.open);
  const focusable = 'summary, input, [tabindex]';
  const focused = [...main.querySelectorAll(focusable)].indexOf(document.activeElement);
  const slider = main.querySelector('.slider input');
  main.replaceWith(next);
  next.querySelectorAll('details').forEach((d, i) => d.open = opened[i] ?? d.open);
  enhance();
  const moved = next.querySelector('.slider input');
  if (slider && moved && slider.value != slider.max) {
    moved.value = slider.value;
    moved.dispatchEvent(new Event('input'));
  }
  if (focused >= 0) next.querySelectorAll(focusable)[focused]?.focus({preventScroll: true});
}

async function refresh(tag) {
  try {
    const answer = await fetch(location.href, {headers: {'If-None-Match': tag}});
    if (answer.status == 200) {
      tag = answer.headers.get('ETag');
      const next = new DOMParser().parseFromString(await answer.text(), 'text/html');
      document.querySelector('#live').textContent = next.querySelector('#live').textContent;
      replaceMain(document.adoptNode(next.querySelector('main')));
    }
  } catch {
    tag = '';
    document.querySelector('#live').textContent = 'No longer live: the server has stopped';
  }
  setTimeout(refresh, 5000, tag);
}

enhance();
if ('live' in document.documentElement.dataset) refresh('');
