// Loads the page's main part anew when the chain has a new block. Without it the page loads itself.
const note = document.querySelector('#live');
const source = new EventSource('/live');
let shown = document.body.dataset.height;
let last; // that the server has told of
let loading = false;
const load = async () => {
  if (loading) return;
  loading = true;
  try {
    for (let loaded; last !== loaded && last !== shown; ) {
      loaded = last;
      const page = new DOMParser().parseFromString(await (await fetch(location.href)).text(), 'text/html');
      const open = new Set([...document.querySelectorAll('details[open][id]')].map(d => d.id));
      document.querySelector('main').replaceWith(page.querySelector('main'));
      for (const d of document.querySelectorAll('details[id]')) d.open = d.open || open.has(d.id);
      document.title = page.title;
      shown = page.body.dataset.height;
    }
  } finally {
    loading = false;
  }
};
source.onopen = () => (note.textContent = 'live');
source.onerror = () => (note.textContent = 'not live: the server does not answer');
source.onmessage = ({ data }) => {
  last = data;
  load().catch(() => {});
};
