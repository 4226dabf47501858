/** The demo, as users run it; every claim that it prints it has checked, so its exit code says whether all hold. */

import t from 'tap'
import { colotap } from '../support/colotap.ts'

for (const [formats, told] of [
  [[], /aio images on both hosts/],
  [['--format', 'qcow'], /qcow images on both hosts/],
  [['--format', 'qcow,vhd'], /qcow images on the primary, vhd images on the secondary/],
  [['--format', 'vhd,qcow'], /vhd images on the primary, qcow images on the secondary/],
] as const) {
  void t.test(`the demo succeeds: ${formats[1] ?? 'without options'}`, async (t) => {
    const { code, stdout, stderr } = await colotap(t, ['demo', ...formats])
    t.equal(code, 0, stderr)
    t.match(stdout, told)
    t.match(stdout, /Success/)
  })
}

void t.test('the demo knows which formats there are', async (t) => {
  for (const formats of ['vdi', 'qcow,', 'qcow,vhd,aio']) {
    const { code, stderr } = await colotap(t, ['demo', '--format', formats])
    t.equal(code, 2)
    t.match(stderr, /give one or two of aio, vhd, qcow/)
  }
})
