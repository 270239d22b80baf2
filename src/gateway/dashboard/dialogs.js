// Dialogs and passing notes: Run now with its input, a webhook's secret (shown once), the keys, "logged out".

import { ApiError, automationPath, post, postText } from './api.js';
import { h, icon, set } from './dom.js';
import { prose, told } from './words.js';

const lastInput = (handle) => `dirigent.input:${handle}`;

/** A modal dialog; the browser keeps the focus in it, and gives it back. */
function modal(title, { className = '', testid } = {}, ...content) {
  const dialog = h(
    'dialog',
    { class: `dialog ${className}`, 'aria-labelledby': 'dialog-title', 'data-testid': testid },
    h('h2', { id: 'dialog-title' }, title),
    ...content,
  );
  dialog.addEventListener('close', () => dialog.remove());
  // A click beside it closes it.
  dialog.addEventListener('mousedown', (event) => {
    if (event.target === dialog && !dialog.dataset.keep) dialog.close();
  });
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

export const isDialogOpen = () => document.querySelector('dialog[open]') !== null;

/** Run now. `input`: JSON text to begin with; otherwise what was given last time. */
export function runDialog(handle, { input } = {}) {
  if (isDialogOpen()) return;
  const area = h('textarea', {
    id: 'run-input',
    'data-testid': 'run-input',
    rows: 9,
    spellcheck: 'false',
    autocomplete: 'off',
    'aria-describedby': 'run-told',
    placeholder: '{ "any": "JSON" }',
  });
  const note = h('p', { id: 'run-told', class: 'told', role: 'status' });
  const start = h('button', { type: 'submit', class: 'primary', 'data-testid': 'run-start' }, icon('play'), 'Start');
  const tidy = h('button', { type: 'button', class: 'quiet' }, 'Format');
  const cancel = h('button', { type: 'button', class: 'quiet' }, 'Close');
  const form = h(
    'form',
    { novalidate: true },
    h('label', { for: 'run-input' }, 'Input ', h('span', { class: 'faint' }, 'JSON, or nothing')),
    area,
    note,
    h('div', { class: 'actions' }, start, tidy, h('span', { class: 'grow' }), cancel),
  );
  const dialog = modal('Run now', { className: 'run-dialog', testid: 'run-dialog' }, h('p', { class: 'mono faint' }, handle), form);
  try {
    area.value = input ?? sessionStorage.getItem(lastInput(handle)) ?? '';
  } catch {
    area.value = input ?? '';
  }

  const check = () => {
    const problem = jsonProblem(area.value);
    start.disabled = problem !== null;
    tidy.disabled = problem !== null || area.value.trim() === '';
    area.setAttribute('aria-invalid', String(problem !== null));
    note.className = problem === null ? 'told' : 'told bad';
    note.textContent = problem ?? '';
  };
  area.addEventListener('input', check);
  area.addEventListener('keydown', (event) => {
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  tidy.addEventListener('click', () => {
    area.value = JSON.stringify(JSON.parse(area.value), null, 2);
    check();
    area.focus();
  });
  cancel.addEventListener('click', () => dialog.close());
  form.addEventListener('submit', async (event) => {
    event.preventDefault();
    if (jsonProblem(area.value) !== null || start.disabled) return;
    start.disabled = true;
    const text = area.value.trim();
    try {
      sessionStorage.setItem(lastInput(handle), area.value);
    } catch {
      // Without storage the input is not remembered.
    }
    try {
      const run = await postText(`${automationPath(handle)}/run`, text === '' ? '{}' : `{"input":${text}}`);
      dialog.close();
      location.hash = `#/r/${run.runId}`;
    } catch (error) {
      start.disabled = false;
      note.className = 'told bad';
      set(note, prose(told(error.message, error.hint)));
      const active = error instanceof ApiError && error.code === 'busy' ? error.document.runId : null;
      if (active) note.append(' ', h('a', { href: `#/r/${active}`, onclick: () => dialog.close() }, 'Go to the active run'));
    }
  });
  check();
  area.focus();
}

/** Why a text is no JSON, with the line and column; null when it is, or when it is empty. */
export function jsonProblem(text) {
  if (text.trim() === '') return null;
  try {
    JSON.parse(text);
    return null;
  } catch (error) {
    const message = error.message.replace(/^JSON\.parse: /, '');
    const at = /position (\d+)/.exec(message);
    if (!at || message.includes('line ')) return message;
    const before = text.slice(0, Number(at[1])).split('\n');
    return `${message} (line ${before.length}, column ${before.at(-1).length + 1})`;
  }
}

/** Asks before something that cannot be taken back. */
export function confirmDialog(title, text, action) {
  return new Promise((resolve) => {
    const yes = h('button', { type: 'button', class: 'primary', 'data-testid': 'confirm' }, action);
    const no = h('button', { type: 'button', class: 'quiet' }, 'Leave it');
    const dialog = modal(title, {}, h('p', {}, text), h('div', { class: 'actions' }, yes, no));
    let answer = false;
    yes.addEventListener('click', () => {
      answer = true;
      dialog.close();
    });
    no.addEventListener('click', () => dialog.close());
    dialog.addEventListener('close', () => resolve(answer));
    no.focus();
  });
}

/** Mints a webhook's credentials and shows them, this once. `what`: `provision` or `rotate`. */
export async function mintWebhook(handle, what, hookBase) {
  if (what === 'rotate') {
    const text = 'The sender needs the new secret at once: posts with the old one are refused from now on.';
    if (!(await confirmDialog('Mint a new secret?', text, 'Mint it'))) return false;
  }
  const minted = await post(`${automationPath(handle)}/webhook/${what}`);
  await secretDialog(minted, hookBase);
  return true;
}

function secretDialog({ url, slug, secret }, hookBase) {
  const address = url ?? `${hookBase ?? ''}/_centraid-hook/${slug}`;
  const done = h('button', { type: 'button', class: 'primary' }, 'I have kept it');
  const dialog = modal(
    'Webhook credentials',
    { className: 'secret-dialog', testid: 'webhook-secret-dialog' },
    h('p', {}, 'The secret is shown this once. Only its hash is kept; if it is lost, mint a new one.'),
    h('div', { class: 'field' }, h('span', { class: 'label' }, 'URL'), copyable(address, 'webhook-url')),
    h('div', { class: 'field' }, h('span', { class: 'label' }, 'Secret'), copyable(secret, 'webhook-secret')),
    h('p', { class: 'faint' }, 'Sent as ', h('code', {}, 'Authorization: Bearer <secret>'), '.'),
    h('div', { class: 'actions' }, done),
  );
  // Not by a stray click: it does not come back.
  dialog.dataset.keep = 'yes';
  done.addEventListener('click', () => dialog.close());
  return new Promise((resolve) => dialog.addEventListener('close', resolve));
}

function copyable(text, testid) {
  return h('div', { class: 'copyable' }, h('code', { 'data-testid': testid }, text), copyButton(() => text));
}

/** `text`: called when it is pressed. */
export function copyButton(text) {
  const button = h('button', { type: 'button', class: 'copy', title: 'Copy', 'aria-label': 'Copy' }, icon('copy'));
  button.addEventListener('click', async () => {
    try {
      await navigator.clipboard.writeText(text());
      button.classList.add('done');
      announce('Copied');
      setTimeout(() => button.classList.remove('done'), 1200);
    } catch {
      toast('The browser does not allow copying here', 'bad');
    }
  });
  return button;
}

const KEYS = [
  ['/', 'Search'],
  ['j', 'Next row'],
  ['k', 'Row before'],
  ['Enter', 'Open the row; in the search, go to the first'],
  ['r', 'Run now'],
  ['g', 'All automations'],
  ['Esc', 'Close, or leave the search'],
  ['?', 'This list'],
];

export function helpDialog() {
  if (isDialogOpen()) return;
  const close = h('button', { type: 'button', class: 'quiet' }, 'Close');
  const out = h('button', { type: 'button', class: 'quiet', 'data-testid': 'logout' }, 'Log out');
  out.addEventListener('click', () => attempt(out, () => post('/v1/logout').then(() => location.reload())));
  const rows = KEYS.map(([key, does]) => h('div', {}, h('dt', {}, h('kbd', {}, key)), h('dd', {}, does)));
  const note = h('p', { class: 'faint' }, 'In the input of Run now, Ctrl or ⌘ with Enter starts.');
  const dialog = modal('Keys', { testid: 'help-dialog' }, h('dl', { class: 'keys' }, rows), note, h('div', { class: 'actions' }, out, h('span', { class: 'grow' }), close));
  close.addEventListener('click', () => dialog.close());
  close.focus();
}

/** The session is over: nothing on the page is true any more. */
export function sessionEnded() {
  if (document.querySelector('[data-testid="session-ended"]')) return;
  for (const open of document.querySelectorAll('dialog[open]')) open.close();
  const dialog = modal(
    'You are logged out',
    { testid: 'session-ended' },
    h('p', {}, 'Sessions end after twelve hours without use, and when the daemon restarts. A new link comes from'),
    h('pre', { class: 'command' }, h('code', {}, 'dirigent dashboard')),
    h('div', { class: 'actions' }, h('button', { type: 'button', class: 'primary', onclick: () => location.reload() }, 'Reload')),
  );
  dialog.dataset.keep = 'yes';
  dialog.addEventListener('cancel', (event) => event.preventDefault());
}

/** Tells screen readers what changed. */
export function announce(text) {
  const region = document.getElementById('announce');
  region.textContent = '';
  requestAnimationFrame(() => {
    region.textContent = text;
  });
}

/** A passing note. */
export function toast(text, kind = 'fine') {
  const note = h('div', { class: `toast ${kind}`, role: kind === 'bad' ? 'alert' : 'status', 'data-testid': 'toast' }, prose(text));
  document.getElementById('toasts').append(note);
  setTimeout(() => note.remove(), kind === 'bad' ? 8000 : 4000);
}

/** Does something and says so when it fails; the button is off while it lasts. */
export async function attempt(button, work) {
  button.disabled = true;
  try {
    return await work();
  } catch (error) {
    toast(told(error.message, error.hint), 'bad');
    return undefined;
  } finally {
    button.disabled = false;
  }
}
