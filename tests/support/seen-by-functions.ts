/**
 * The url of something on this machine as functions reach it. Those that run in a container of LocalStack, as in
 * .github/workflows/ci.yml, know this machine by another name: FUNCTIONS_SEE_HOST.
 */
export function seenByFunctions(url: string): string {
  const host = process.env['FUNCTIONS_SEE_HOST']
  if (!host) return url
  const seen = new URL(url)
  seen.hostname = host
  return seen.href
}
