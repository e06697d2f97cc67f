/** Made by the build (infra/build/rds-certificates.mjs). */
declare module 'loopless:rds-certificates' {
  /** The certificate authorities of RDS in a region, as PEM; none when the region is not known. */
  export function certificatesOf(region: string): string[]
}
