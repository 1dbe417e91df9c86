package nodetest

import (
	"os/exec"
	"testing"
)

func TestInstall(t *testing.T) {
	dir := Install(t, "testdata/one")
	cmd := exec.Command("node", "-e", `console.log(require("ms")("2 days"))`)
	cmd.Dir = dir
	if out, err := cmd.Output(); err != nil || string(out) != "172800000\n" {
		t.Errorf("got %q (%v)", out, err)
	}
	if again := Install(t, "testdata/one"); again != dir {
		t.Errorf("installed again, in %s, not %s", again, dir)
	}
}
