// An upgrade to this fails: it does not define a durable kind that its predecessor has defined.
import { makeLedger } from './ledger.js';

export const buildRootObject = makeLedger(3, 'forgets');
