// Validates Kubernetes manifests with the models of @kubernetes-models: Istio's kinds, Gateway API's, Envoy Gateway's, Kubernetes' own.
//
// validate.mjs FILE... prints one JSON line per object that is valid, or of a kind that the models do not know. It exits with 1, and
// with a sentence per problem on standard error, if an object is invalid. `node_modules` must be beside this file.

import { readFileSync } from "node:fs";
import { parseAllDocuments } from "yaml";

const PACKAGES = [
  "@kubernetes-models/istio",
  "@kubernetes-models/gateway-api",
  "@kubernetes-models/envoy-gateway",
  "kubernetes-models",
].map(installed);

// A package that is not installed is an error, and must not make kinds unknown.
function installed(name) {
  return JSON.parse(readFileSync(new URL(`node_modules/${name}/package.json`, import.meta.url), "utf8"));
}

// The model of a kind and its package, or nothing.
async function modelOf(apiVersion, kind) {
  const found = PACKAGES.find((candidate) => `./${apiVersion}` in candidate.exports);
  const model = found && (await import(`${found.name}/${apiVersion}`))[kind];
  // Parts of kinds have models, too: only those of whole kinds have an API version.
  return model?.apiVersion === apiVersion ? { model, models: `${found.name} ${found.version}` } : undefined;
}

// A field as people write it: spec.configPatches[0].applyTo.
function field(path) {
  return path.map((part) => (/^\d+$/.test(part) ? `[${part}]` : `.${part}`)).join("").replace(/^\./, "");
}

function isObject(value) {
  return typeof value === "object" && value !== null;
}

// An object that notes which keys of it, and of what it holds, are asked for. Each note has the keys asked for, there or not.
function watched(value, path, notes) {
  if (!isObject(value)) {
    return value;
  }
  const note = { value, path, asked: new Set(), inner: new Map() };
  notes.push(note);
  return new Proxy(value, {
    get(target, key) {
      const held = Reflect.get(target, key);
      if (typeof key !== "string" || typeof held === "function") {
        return held;
      }
      note.asked.add(key);
      if (!note.inner.has(key)) {
        note.inner.set(key, watched(held, [...path, key], notes));
      }
      return note.inner.get(key);
    },
  });
}

// Which fields the model does not have. The models' validators pass over them, but ask for each field that a model has: what they did
// not ask for is unknown. An object of which they asked for nothing may hold what it likes: a patch's value, a plugin's configuration.
function unknownFields(notes) {
  const objects = notes.filter(({ value, asked }) => !Array.isArray(value) && asked.size > 0);
  return objects.flatMap(({ value, path, asked }) =>
    Object.keys(value).filter((key) => !asked.has(key)).map((key) => `${field([...path, key])}: the model has no such field`),
  );
}

// What is wrong with an object, a sentence each.
function problemsOf(model, manifest) {
  const notes = [];
  try {
    // Not of an instance: its constructor copies, so that nothing could be watched.
    model.prototype.validate.call(watched(manifest, [], notes));
  } catch (problem) {
    if (!Array.isArray(problem.errors)) {
      throw problem;
    }
    return problem.errors.map((error) => {
      const path = error.instancePath.split("/").slice(1);
      const allowed = error.params?.allowedValues ? `: ${error.params.allowedValues.join(", ")}` : "";
      return `${field(path) || "the object"}: ${error.message}${allowed}`;
    });
  }
  return unknownFields(notes);
}

// What is to be said of an object, and its problems.
async function check(manifest) {
  if (!isObject(manifest) || Array.isArray(manifest)) {
    return { problems: ["not an object"] };
  }
  const { apiVersion, kind } = manifest;
  const name = manifest.metadata?.name;
  const wanted = Object.entries({ apiVersion, kind, "metadata.name": name });
  const missing = wanted.filter(([, value]) => typeof value !== "string" || value === "");
  if (missing.length > 0) {
    return { problems: missing.map(([path]) => `${path}: it must be there, and be text`) };
  }
  const known = await modelOf(apiVersion, kind);
  if (!known) {
    return { said: { kind, apiVersion, name, result: "unknown kind", models: null }, problems: [] };
  }
  return { said: { kind, apiVersion, name, result: "valid", models: known.models }, problems: problemsOf(known.model, manifest) };
}

// How a sentence calls an object.
function title(manifest, number) {
  const name = manifest?.metadata?.name;
  const words = [manifest?.apiVersion, manifest?.kind, name && JSON.stringify(name), `(document ${number})`];
  return words.filter(Boolean).join(" ");
}

// Whether all objects of a file are valid, or of unknown kinds.
async function validate(path) {
  const documents = [...parseAllDocuments(readFileSync(path, "utf8"), { merge: true })];
  const broken = documents.flatMap((document) => document.errors);
  broken.forEach((problem) => console.error(`${path}: not YAML: ${problem.message}`));
  if (broken.length > 0) {
    return false;
  }
  // `---` before the first object or after the last one makes empty documents.
  const numbered = documents.map((document, index) => [index + 1, document.toJS()]).filter(([, manifest]) => manifest !== null);
  if (numbered.length === 0) {
    console.error(`${path}: it holds no object`);
    return false;
  }
  let valid = true;
  for (const [number, manifest] of numbered) {
    const { said, problems } = await check(manifest);
    problems.forEach((problem) => console.error(`${path}: ${title(manifest, number)} is invalid: ${problem}`));
    if (problems.length > 0) {
      valid = false;
    } else {
      console.log(JSON.stringify(said));
    }
  }
  return valid;
}

if (process.argv.length < 3) {
  console.error("usage: validate.mjs FILE...");
  process.exit(1);
}
for (const path of process.argv.slice(2)) {
  if (!(await validate(path))) {
    process.exitCode = 1;
  }
}
