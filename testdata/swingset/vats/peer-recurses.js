import { makePeer } from './peer.js';

export const buildRootObject = makePeer(2, 'recurses');
