// Vats that talk to each other and remember, durably, what they were told: for tests that run them over upgrades. A fault makes an upgrade to
// it fail.
import { E, Far } from '@endo/far';
import { makePromiseKit } from '@endo/promise-kit';
import { defineDurableKind, makeKindHandle, makeScalarBigMapStore } from '@agoric/vat-data';

const provide = (baggage, key, make) => {
  if (!baggage.has(key)) baggage.init(key, make());
  return baggage.get(key);
};

export const makePeer = (version, fault) => (_vatPowers, { name }, baggage) => {
  if (fault === 'throws') throw Error(`version ${version} does not start`);
  if (fault === 'spins') for (;;);
  if (fault === 'recurses') {
    const recurse = n => recurse(n + 1) + 1;
    recurse(0);
  }
  const peers = provide(baggage, 'peers', () => makeScalarBigMapStore('peers', { durable: true }));
  const heard = provide(baggage, 'heard', () => makeScalarBigMapStore('heard', { durable: true })); // speaker -> what, in order
  const handle = provide(baggage, 'handle', () => makeKindHandle('Token'));
  const incarnation = (baggage.has('incarnation') ? baggage.get('incarnation') : 0) + 1;
  if (incarnation === 1) baggage.init('incarnation', incarnation);
  else baggage.set('incarnation', incarnation);
  if (fault === 'forgets') return Far('forgetful', {}); // the kind Token is not defined
  const makeToken = defineDurableKind(handle, id => ({ id }), { id: ({ state }) => state.id });

  const held = [];
  const waiting = [];
  const store = (map, key, value) => (map.has(key) ? map.set(key, value) : map.init(key, value));
  return Far(name, {
    report: () => ({ name, version, incarnation }),
    meet: (peer, its) => store(peers, its, peer),
    hear(speaker, what) {
      store(heard, speaker, harden([...(heard.has(speaker) ? heard.get(speaker) : []), what]));
      return what;
    },
    // Speaks to a peer, and does not wait.
    tell(peer, what) {
      E(peers.get(peer)).hear(name, what).catch(() => {});
    },
    // Speaks to a peer, and answers what it answers.
    ask: (peer, what) => E(peers.get(peer)).hear(name, what),
    heard: speaker => (heard.has(speaker) ? heard.get(speaker) : []),

    token: id => makeToken(id),
    // An object that does not outlive the incarnation.
    give: (peer, what) => E(peer).hold(Far('thing', { what: () => what })),
    hold(thing) {
      held.push(thing);
      return E(thing).what();
    },
    release: () => held.splice(0).length,
    // Messages to promises, and promises of promises.
    relay: (peer, what) => E(E(peer).open()).hear(name, what),
    open() {
      const kit = makePromiseKit();
      waiting.push(kit);
      return kit.promise;
    },
    wait: async peer => `${name} has ${await E(peer).open()}`,
    settle(value) {
      const n = waiting.length;
      for (const kit of waiting.splice(0)) kit.resolve(value);
      return n;
    },
    spend(rounds) {
      let x = 1;
      for (let i = 0; i < rounds; i += 1) x = (x * 48271) % 2147483647;
      return x;
    },
    fail: why => {
      throw Error(why);
    },
  });
};
