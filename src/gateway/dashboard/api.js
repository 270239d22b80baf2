// The API of this origin: questions, changes, and events. The session's cookie goes along by itself.

import { learnClock } from './format.js';

/** What the daemon refused: `code` is stable, `detail` is for people, `document` has the rest. */
export class ApiError extends Error {
  constructor(status, document) {
    super(document.detail ?? document.title ?? `the daemon answered with status ${status}`);
    this.status = status;
    this.code = document.code ?? 'http';
    this.hint = document.hint;
    this.document = document;
  }
}

export const get = (path, signal) => ask(path, { signal });

/** As `get`, with every digit of long numbers, where the browser can: what a run took is shown as it was. */
export const getExact = (path, signal) => ask(path, { signal }, exact);

function exact(_key, value, context) {
  const isLong = typeof value === 'number' && !Number.isSafeInteger(value) && context?.source !== undefined;
  return isLong && JSON.rawJSON ? JSON.rawJSON(context.source) : value;
}

export function post(path, body = {}) {
  return ask(path, { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) });
}

/** As `post`, with JSON text as it was typed: a number of twenty digits keeps all of them. */
export function postText(path, text) {
  return ask(path, { method: 'POST', headers: { 'content-type': 'application/json' }, body: text });
}

async function ask(path, options, revive) {
  let response;
  try {
    response = await fetch(path, { ...options, cache: 'no-store', credentials: 'same-origin' });
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new ApiError(0, { code: 'unreachable', detail: 'the daemon does not answer' });
  }
  learnClock(response.headers.get('date'));
  const text = await response.text();
  let document = {};
  try {
    document = JSON.parse(text, revive);
  } catch {
    // An answer without a body, or no JSON: the status says enough.
  }
  if (response.ok) return document;
  if (response.status === 401) tell('session-ended');
  throw new ApiError(response.status, document ?? {});
}

/** `<app>/<id>` as a path of the API. */
export const automationPath = (handle) => `/v1/automations/${handle.split('/').map(encodeURIComponent).join('/')}`;
export const runPath = (run) => `/v1/runs/${encodeURIComponent(run)}`;

function tell(type, detail) {
  document.dispatchEvent(new CustomEvent(type, { detail }));
}

const NAMES = ['message', 'opened', 'started', 'log', 'nodeOpened', 'nodeClosed', 'ended', 'registry', 'reset'];
/** A stream that broke is asked for again after this long. */
const AGAIN_MS = 2500;

/**
 * Follows a stream of events. `onEvent` gets each one's data, with its `type`; `onGap` is called when events may have been
 * missed, and whoever shows them should read again.
 *
 * Only a page that is seen follows: a browser keeps six connections to one host, for all of its tabs.
 */
export function follow(path, onEvent, onGap) {
  let source = null;
  let timer = 0;
  let over = false;
  // Until the stream is open, something may have happened that the page did not read.
  let gap = true;

  const close = () => {
    clearTimeout(timer);
    source?.close();
    source = null;
  };
  const open = () => {
    close();
    if (over || document.hidden) return;
    source = new EventSource(path);
    source.onopen = () => {
      tell('live-state', 'live');
      if (gap) onGap?.();
      gap = false;
    };
    source.onerror = () => {
      tell('live-state', 'broken');
      gap = true;
      if (source?.readyState === EventSource.CLOSED) {
        close();
        timer = setTimeout(again, AGAIN_MS);
      }
    };
    for (const name of NAMES) source.addEventListener(name, (event) => take(name, event));
  };
  const take = (name, event) => {
    let data;
    try {
      data = JSON.parse(event.data);
    } catch {
      return;
    }
    // `reset`: the daemon cannot tell any more what happened in between.
    if (name === 'reset') onGap?.();
    else onEvent(name === 'message' ? data : { type: name, ...data });
  };
  // The browser does not say why a stream was refused: the API does.
  const again = async () => {
    try {
      await get('/readyz');
      open();
    } catch (error) {
      if (error.status !== 401 && !over) timer = setTimeout(again, AGAIN_MS);
    }
  };
  const seen = () => {
    if (document.hidden) {
      gap = true;
      close();
    } else if (source === null) {
      open();
    }
  };
  document.addEventListener('visibilitychange', seen);
  open();
  return {
    close() {
      over = true;
      tell('live-state', 'idle');
      document.removeEventListener('visibilitychange', seen);
      close();
    },
  };
}
