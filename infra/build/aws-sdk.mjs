// Lambda gives a function its credentials in the environment. The clients of the AWS SDK that Loopless uses look in nine
// other places too, and what looks there is half of each (2026-11-25: 382 KB of client-lambda, 255 without). A client
// that a handler uses is left as it is.

const ours = /[\\/]node_modules[\\/]@aws-sdk[\\/](client-lambda|rds-signer)[\\/]/

/** @returns {import('esbuild').Plugin} */
export function awsSdk() {
  return {
    name: 'loopless-aws-sdk',
    setup({ onResolve, onLoad }) {
      onResolve({ filter: /^@aws-sdk\/credential-provider(s|-node)$/ }, ({ importer, resolveDir }) =>
        ours.test(importer)
          ? { path: 'from-environment', namespace: 'aws-sdk', pluginData: resolveDir }
          : undefined,
      )
      onLoad({ filter: /./, namespace: 'aws-sdk' }, ({ pluginData: resolveDir }) => ({
        contents: `export { fromEnv as defaultProvider, fromEnv as fromNodeProviderChain } from '@aws-sdk/credential-provider-env'`,
        resolveDir,
      }))
    },
  }
}
