// What ends a vat, or a crank.
import { Far } from '@endo/far';

const recurse = n => 1 + recurse(n + 1);

export const buildRootObject = vatPowers => {
  let count = 0;
  let held = null;
  return Far('faults', {
    count: () => {
      count += 1;
      return count;
    },
    spin() {
      for (;;) count += 1;
    },
    recurse: () => recurse(0),
    hog() {
      const all = [];
      for (;;) all.push(new Uint8Array(2 ** 27));
    },
    nest(levels) {
      for (let i = 0; i < levels; i += 1) {
        const within = held;
        held = {
          get within() {
            return within;
          },
        };
      }
    },
    never: () => new Promise(() => {}),
    exit: value => vatPowers.exitVat(value),
    exitWithFailure: reason => vatPowers.exitVatWithFailure(Error(reason)),
    device: device => vatPowers.D(device).get(count),
    log: (...args) => console.log(...args),
  });
};
