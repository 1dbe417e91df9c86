// Promises, virtual and ephemeral objects, collections, garbage, and computation up to a meter's limit.
import { E, Far } from '@endo/far';
import { makePromiseKit } from '@endo/promise-kit';
import { defineKind, makeScalarBigMapStore, makeScalarBigWeakMapStore } from '@agoric/vat-data';

export const buildRootObject = (vatPowers, { name = 'worker' } = {}) => {
  const makeNote = defineKind('Note', text => ({ text, reads: 0 }), {
    read: ({ state }) => {
      state.reads += 1;
      return `${state.text} (${state.reads})`;
    },
  });
  const notes = makeScalarBigMapStore('notes');
  const marks = makeScalarBigWeakMapStore('marks');
  const held = new Map();
  const waiting = [];
  let count = 0;
  return Far(name, {
    count: () => {
      count += 1;
      return count;
    },
    greet: async other => `${name} greets ${await other}`,
    note(key, text) {
      const note = makeNote(text);
      notes.init(key, note);
      marks.init(note, key);
      return note;
    },
    read: key => notes.get(key).read(),
    forget: key => notes.delete(key),
    keys: () => [...notes.keys()].join(),
    make: what => Far(`${what} of ${name}`, { what: () => what }),
    hold: thing => {
      held.set(held.size, thing);
      return E(thing).what();
    },
    release: () => {
      const n = held.size;
      held.clear();
      return n;
    },
    mark: (thing, mark) => marks.init(thing, mark),
    marked: thing => marks.has(thing) && marks.get(thing),
    promise() {
      const kit = makePromiseKit();
      waiting.push(kit);
      return kit.promise;
    },
    settle(value) {
      const n = waiting.length;
      for (const kit of waiting.splice(0)) kit.resolve(value);
      return n;
    },
    refuse(reason) {
      for (const kit of waiting.splice(0)) kit.reject(Error(reason));
    },
    compute(rounds) {
      let x = 1;
      for (let i = 0; i < rounds; i += 1) x = (x * 48271) % 2147483647;
      return x;
    },
    allocate(slots) {
      held.set('slots', Array.from({ length: slots }, (_, i) => ({ i })));
      return slots;
    },
    exit: reason => vatPowers.exitVat(reason),
    log: (...args) => console.log(name, ...args),
    fail: text => {
      throw Error(text);
    },
  });
};
