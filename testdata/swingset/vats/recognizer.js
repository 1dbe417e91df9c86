// A vat that recognizes what it is given, and does not hold it.
import { E, Far } from '@endo/far';

export const buildRootObject = () => {
  const known = new WeakSet();
  let count = 0;
  return Far('recognizer', {
    hold(thing) {
      known.add(thing);
      count += 1;
      return E(thing).what();
    },
    count: () => count,
  });
};
