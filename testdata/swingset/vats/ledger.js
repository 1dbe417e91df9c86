// Durable state: a kind, a collection, a counter in baggage. Its versions say what a new incarnation finds, and how one can fail.
import { Far } from '@endo/far';
import { defineDurableKind, makeKindHandle, makeScalarBigMapStore } from '@agoric/vat-data';

export const makeLedger = (version, fault) => (vatPowers, vatParameters, baggage) => {
  if (fault === 'throws') {
    throw Error(`version ${version} does not start`);
  }
  const incarnations = (baggage.has('incarnations') ? baggage.get('incarnations') : 0) + 1;
  if (baggage.has('incarnations')) baggage.set('incarnations', incarnations);
  else baggage.init('incarnations', incarnations);

  if (fault !== 'forgets') {
    const handle = baggage.has('accountHandle')
      ? baggage.get('accountHandle')
      : makeKindHandle('Account');
    if (!baggage.has('accountHandle')) baggage.init('accountHandle', handle);
    const makeAccount = defineDurableKind(handle, owner => ({ owner, balance: 0n }), {
      deposit: ({ state }, amount) => {
        state.balance += amount;
        return state.balance;
      },
      balance: ({ state }) => state.balance,
      owner: ({ state }) => `${state.owner}, version ${version}`,
    });
    if (!baggage.has('accounts')) {
      baggage.init('accounts', makeScalarBigMapStore('accounts', { durable: true }));
    }
    const accounts = baggage.get('accounts');
    return Far('ledger', {
      open(owner) {
        const account = makeAccount(owner);
        accounts.init(owner, account);
        return account;
      },
      deposit: (owner, amount) => accounts.get(owner).deposit(amount),
      close: owner => accounts.delete(owner),
      sum: () => [...accounts.values()].reduce((sum, a) => sum + a.balance(), 0n),
      owners: () => [...accounts.keys()].join(),
      report: () => ({ version, incarnations, vatParameters, owners: accounts.getSize() }),
    });
  }
  return Far('ledger without accounts', {});
};
