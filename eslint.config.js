import { defineConfig } from 'eslint/config'
import tseslint from 'typescript-eslint'

/**
 * Imports go one way: core <- net, formats <- ramdisk, replication machines, nbd <- drivers <- control <- cli.
 * Each entry names the folders that a folder may NOT import.
 */
const forbiddenImports = {
  core: [
    'net',
    'formats',
    'ramdisk',
    'replication',
    'drivers',
    'nbd',
    'control',
    'cli',
    'test',
    'bench',
  ],
  net: ['formats', 'ramdisk', 'replication', 'drivers', 'nbd', 'control', 'cli', 'test', 'bench'],
  formats: ['net', 'ramdisk', 'replication', 'drivers', 'nbd', 'control', 'cli', 'test', 'bench'],
  ramdisk: ['net', 'replication', 'drivers', 'nbd', 'control', 'cli', 'test', 'bench'],
  replication: ['drivers', 'nbd', 'control', 'cli', 'test', 'bench'],
  drivers: ['control', 'cli', 'test', 'bench'],
  nbd: ['replication', 'ramdisk', 'drivers', 'control', 'cli', 'test', 'bench'],
  control: ['cli', 'test', 'bench'],
  cli: ['test', 'bench'],
}

const layering = Object.entries(forbiddenImports).map(([folder, others]) => ({
  files: [`${folder}/**/*.ts`],
  rules: {
    'no-restricted-imports': [
      'error',
      {
        patterns: others.map((other) => ({
          group: [`**/${other}/**`],
          message: `${folder}/ may not import ${other}/ (docs/architecture.md, layers)`,
        })),
      },
    ],
  },
}))

/** Folders and files that decide without touching the world: time, chance and I/O are inputs there. */
const pure = ['core/**/*.ts', 'formats/**/*.ts', 'ramdisk/**/*.ts', 'replication/machine/**/*.ts']

export default defineConfig(
  { ignores: ['dist/**', 'node_modules/**', '.tap/**', 'eslint.config.js'] },
  ...tseslint.configs.strictTypeChecked,
  {
    languageOptions: {
      parserOptions: { projectService: true, tsconfigRootDir: import.meta.dirname },
    },
    rules: {
      '@typescript-eslint/switch-exhaustiveness-check': 'error',
      '@typescript-eslint/restrict-template-expressions': [
        'error',
        { allowNumber: true, allowBoolean: true },
      ],
      '@typescript-eslint/no-confusing-void-expression': [
        'error',
        { ignoreArrowShorthand: true, ignoreVoidReturningFunctions: true },
      ],
      '@typescript-eslint/no-unnecessary-condition': [
        'error',
        { allowConstantLoopConditions: true },
      ],
      '@typescript-eslint/explicit-module-boundary-types': 'error',
      eqeqeq: 'error',
      'no-console': 'error',
    },
  },
  ...layering,
  {
    files: pure,
    rules: {
      'no-restricted-globals': [
        'error',
        'setTimeout',
        'setInterval',
        'setImmediate',
        'process',
        'performance',
      ],
      'no-restricted-properties': [
        'error',
        { object: 'Date', property: 'now', message: 'time is an input here' },
        { object: 'Math', property: 'random', message: 'chance is an input here' },
      ],
    },
  },
  {
    files: [
      'core/**/*.ts',
      'formats/**/*.ts',
      'net/**/*.ts',
      'ramdisk/**/*.ts',
      'nbd/**/*.ts',
      'drivers/**/*.ts',
      'replication/**/*.ts',
      'control/**/*.ts',
    ],
    rules: {
      'no-restricted-syntax': [
        'error',
        {
          selector:
            "MemberExpression[object.name='process'][property.name=/^(exit|argv|stdout|stdin)$/]",
          message: 'only cli/ reads the command line, prints and exits',
        },
      ],
    },
  },
  {
    files: ['test/**/*.ts', 'bench/**/*.ts', 'cli/**/*.ts'],
    rules: { 'no-console': 'off', '@typescript-eslint/no-non-null-assertion': 'off' },
  },
)
