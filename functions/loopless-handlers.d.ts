/** Made by the build (infra/build/handlers.mjs): the modules in functions/handlers/, as a set. */
declare module 'loopless:handlers' {
  export const handlers: import('../src/index.ts').HandlerSet
}
