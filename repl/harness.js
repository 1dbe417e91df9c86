// What the guest of a REPL has: a handleCommand that evaluates a script and answers with a text that shows its value. It is the value of this
// script, so that each heap has it once. Engines since 2021 understand it.
(() => {
  const mark = Symbol.for('enginery repl');
  if (globalThis.handleCommand && globalThis.handleCommand[mark]) return;
  const evaluate = eval; // not by this name, so that scripts are global
  const { getOwnPropertyDescriptor, getPrototypeOf } = Object;
  const { ownKeys } = Reflect;
  const tell = globalThis.issueCommand;

  const decode = bytes => decodeURIComponent(escape(Array.from(new Uint8Array(bytes), b => String.fromCharCode(b)).join('')));
  const percent = c => {
    try {
      return encodeURIComponent(c);
    } catch {
      return '%EF%BF%BD'; // half a character
    }
  };
  const encode = text => Uint8Array.from(unescape(Array.from(text, percent).join('')), c => c.charCodeAt(0)).buffer;

  const most = 100; // entries of a collection, and characters of the source of a function
  const identifier = /^[A-Za-z_$][\w$]*$/;
  const showKey = key => (typeof key === 'symbol' ? `[${String(key)}]` : identifier.test(key) ? key : JSON.stringify(key));
  const list = (open, items, close) => (items.length ? `${open}${items.join(', ')}${close}` : open.trim() + close.trim());
  const show = (value, above = []) => {
    switch (typeof value) {
      case 'string':
        return JSON.stringify(value);
      case 'bigint':
        return `${value}n`;
      case 'number':
        return Object.is(value, -0) ? '-0' : String(value);
      case 'function':
        return `[function ${value.name || '(anonymous)'}]`;
      case 'object':
        break;
      default:
        return String(value);
    }
    if (value === null) return 'null';
    if (above.includes(value)) return '[circular]';
    if (above.length > 4) return '[…]';
    const inside = [...above, value];
    const cut = (items, size, each) => [...items.map(each), ...(size > most ? [`… ${size - most} more`] : [])];
    const first = iterable => {
      const items = [];
      for (const item of iterable) if (items.push(item) === most) break;
      return items;
    };
    const named = getPrototypeOf(value) && getPrototypeOf(value).constructor;
    const name = named && typeof named === 'function' ? named.name : '';
    if (value instanceof Error) return `${value}`;
    if (value instanceof Date) return isNaN(value) ? 'Invalid Date' : value.toISOString();
    if (value instanceof RegExp) return String(value);
    if (value instanceof Promise) return '[promise]';
    if (value instanceof ArrayBuffer) return list('ArrayBuffer [', cut(first(new Uint8Array(value)), value.byteLength, String), ']');
    if (ArrayBuffer.isView(value) && !(value instanceof DataView)) return list(`${name} [`, cut(first(value), value.length, v => show(v, inside)), ']');
    if (Array.isArray(value)) return list('[', cut(first(value), value.length, v => show(v, inside)), ']');
    if (value instanceof Map) {
      return list('Map {', cut(first(value), value.size, ([k, v]) => `${show(k, inside)} => ${show(v, inside)}`), '}');
    }
    if (value instanceof Set) return list('Set {', cut(first(value), value.size, v => show(v, inside)), '}');
    const keys = ownKeys(value).filter(key => getOwnPropertyDescriptor(value, key).enumerable);
    const entry = key => {
      const property = getOwnPropertyDescriptor(value, key);
      return `${showKey(key)}: ${'value' in property ? show(property.value, inside) : '[accessor]'}`;
    };
    return list(`${name && name !== 'Object' ? `${name} ` : ''}{ `, cut(keys.slice(0, most), keys.length, entry), ' }');
  };

  const handleCommand = message => {
    const report = {};
    const done = (kind, value) => {
      let text;
      try {
        text = show(value);
      } catch (error) {
        text = `[it cannot be shown: ${error}]`;
      }
      report.result = encode(kind + text);
    };
    try {
      const value = evaluate(decode(message));
      if (value instanceof Promise) {
        report.result = encode('=[promise that nothing settles]');
        value.then(v => done('>', v), e => done('!', e));
      } else {
        done('=', value);
      }
    } catch (error) {
      done('!', error);
    }
    return report;
  };
  handleCommand[mark] = true;
  globalThis.handleCommand = handleCommand;

  // What is printed and sent comes by the way that the answer comes, in order.
  globalThis.print = (...items) => {
    tell(encode(`p${items.join(' ')}`));
  };
  globalThis.issueCommand = bytes => {
    const tagged = new Uint8Array(1 + bytes.byteLength);
    tagged[0] = 'c'.charCodeAt(0);
    tagged.set(new Uint8Array(bytes), 1);
    return tell(tagged.buffer);
  };
})();
