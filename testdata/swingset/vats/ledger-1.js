import { makeLedger } from './ledger.js';

export const buildRootObject = makeLedger(1);
