// What a field may hold: each type reads what came (or refuses it) and writes what goes.

import { check } from "./errors.js";
import { Float } from "./msgpack.js";
import { isName } from "./topics.js";

export const REQUIRED = Symbol("required");
export const ABSENT = Symbol("absent");

const characters = (text) => {
  let count = 0;
  for (const _ of text) count += 1;
  return count;
};
const need = (condition, what) => check(condition, "malformed", what);

const plain = (read) => ({ read, write: (value) => value });

export const bool = plain((value) => {
  need(typeof value === "boolean", "not a bool");
  return value;
});

export const int = (least, most) => plain((value) => {
  need(typeof value === "number" && value >= least && value <= most, "not an integer in its bounds");
  return value;
});

export const counter = int(0, 2 ** 53 - 1);

/** A float; `allows` judges its value. Integers are read as well. */
export const float = (allows = () => true) => ({
  read(value) {
    need(typeof value === "number" || value instanceof Float, "not a number");
    const number = value instanceof Float ? value.value : value;
    need(Number.isFinite(number) && allows(number), "a number out of its bounds");
    return number;
  },
  write: (value) => new Float(value),
});

export const str = (least, most) => plain((value) => {
  need(typeof value === "string" && characters(value) >= least && characters(value) <= most, "not a str in its bounds");
  return value;
});

export const id = plain((value) => {
  need(typeof value === "string" && isName(value), "not a name");
  return value;
});

export const hexDigits = (count) => plain((value) => {
  need(typeof value === "string" && value.length === count && /^[0-9a-f]*$/.test(value), "not hexadecimal");
  return value;
});

export const bin = (least, most = least) => plain((value) => {
  need(value instanceof Uint8Array && value.length >= least && value.length <= most, "not a bin in its bounds");
  return value;
});

export const oneOf = (...words) => plain((value) => {
  need(words.includes(value), "not one of the words");
  return value;
});

export const array = (type, least, most) => ({
  read(value) {
    need(Array.isArray(value) && value.length >= least && value.length <= most, "not an array in its bounds");
    return value.map(type.read);
  },
  write: (value) => value.map(type.write),
});

const isMap = (value) => value !== null && typeof value === "object" && Object.getPrototypeOf(value) === null;

/** Names to values of one type. */
export const map = (type, most) => ({
  read(value) {
    need(isMap(value) && Object.keys(value).length <= most, "not a map in its bounds");
    const out = {};
    for (const [key, item] of Object.entries(value)) {
      need(characters(key) <= 64, "a key too long");
      out[key] = type.read(item);
    }
    return out;
  },
  write: (value) => Object.fromEntries(Object.entries(value).map(([key, item]) => [key, type.write(item)])),
});

/** bool, int, float or str. */
export const scalar = {
  read(value) {
    if (value instanceof Float || typeof value === "number") return float().read(value);
    if (typeof value === "boolean") return value;
    return str(0, 1024).read(value);
  },
  write: (value) => value,
};

const isEmpty = (value) => typeof value === "object" && value !== null && Object.keys(value).length === 0;

/** What is at its default need not be said; among objects only empty ones are defaults. */
const isDefault = (item, fallback) => item === fallback || (isEmpty(fallback) && isEmpty(item));

/** A map with the fields of `fields`: name -> [type, default]. `judge` refuses what does not fit together. */
export function struct(fields, judge = () => {}) {
  return {
    read(value) {
      need(isMap(value), "not a map");
      for (const key of Object.keys(value)) need(key in fields, `unknown field ${key}`);
      const out = {};
      for (const [name, [type, fallback]] of Object.entries(fields)) {
        const given = value[name];
        if (given === undefined || (given === null && fallback === ABSENT)) {
          need(fallback !== REQUIRED, `no ${name}`);
          if (fallback !== ABSENT) out[name] = fallback;
        } else out[name] = type.read(given);
      }
      judge(out);
      return out;
    },
    write(value) {
      const out = {};
      for (const [name, item] of Object.entries(value)) {
        const [type, fallback] = fields[name];
        if (item !== undefined && !isDefault(item, fallback)) out[name] = type.write(item);
      }
      return out;
    },
  };
}
