// A browser's IndexedDB as storage: a commit is one of its transactions.

const STORE = "items";

const settled = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

export class IndexedDbStorage {
  constructor(database) {
    this.database = database;
  }

  static async open(name) {
    const request = indexedDB.open(name, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE);
    return new IndexedDbStorage(await settled(request));
  }

  items() {
    return this.database.transaction(STORE).objectStore(STORE);
  }

  async read(name) {
    return (await settled(this.items().get(name))) ?? null;
  }

  async names() {
    return settled(this.items().getAllKeys());
  }

  commit(changes) {
    return new Promise((resolve, reject) => {
      const transaction = this.database.transaction(STORE, "readwrite", { durability: "strict" });
      transaction.oncomplete = () => resolve();
      transaction.onerror = () => reject(transaction.error);
      transaction.onabort = () => reject(transaction.error);
      const store = transaction.objectStore(STORE);
      for (const [name, bytes] of Object.entries(changes)) {
        if (bytes === null) store.delete(name);
        else store.put(bytes, name);
      }
    });
  }
}
