// An upgrade to this fails: startVat throws.
import { makeLedger } from './ledger.js';

export const buildRootObject = makeLedger(3, 'throws');
