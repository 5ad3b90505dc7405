/**
 * The public surface for `import`: the same objects as for `require`, so that a class has one identity however it was reached.
 */
export * from './index.js'
