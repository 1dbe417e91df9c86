// A vat must export buildRootObject, and this does not.
export const version = 2;
