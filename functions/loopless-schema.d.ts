/** Made by the build (infra/build/schema.mjs). */
declare module 'loopless:schema' {
  /** What infra/migrations holds, in its order. */
  export const migrations: ReadonlyArray<import('../src/index.ts').Migration>
  /** The text of functions/schema.sql. */
  export const handlerSchema: string
}
