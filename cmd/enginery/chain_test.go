package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/enginery/enginery/internal/exit"
	"github.com/enginery/enginery/internal/swingsettest"
	"github.com/enginery/enginery/replay"
	"github.com/opencontainers/go-digest"
)

// TestChain runs a chain from a file and from a socket, moves a vat to another version, and looks at it.
func TestChain(t *testing.T) {
	t.Parallel()
	w := makeWorld(t)
	folder := t.TempDir()
	for i, b := range swingsettest.Bundles(t, "peer-1", "peer-2") {
		must(t, os.WriteFile(filepath.Join(folder, fmt.Sprintf("peer-%d.json", i+1)), b, 0o644))
	}
	classification := fmt.Appendf(nil, `{"schema":%q,"from":%q,"to":%q,"vats":[]}`, replay.ClassificationSchema, legacy, current)
	input := filepath.Join(folder, "demo.jsonl")
	must(t, os.WriteFile(input, fmt.Appendf(nil, `{"sender":"gov","seq":1,"type":"init","version":%[1]q}
{"sender":"gov","seq":2,"type":"install","vat":"one","bundle":{"file":"peer-1.json"},"parameters":{"name":"one"}}
{"sender":"gov","seq":3,"type":"install","vat":"two","bundle":{"file":"peer-1.json"},"parameters":{"name":"two"},"legacyOnly":true}
{"type":"block"}
{"sender":"alice","seq":1,"type":"deliver","vat":"one","method":"meet","args":[{"@vat":"two"},"two"]}
{"sender":"alice","seq":2,"type":"deliver","vat":"one","method":"ask","args":["two","hello"]}
{"sender":"alice","seq":3,"type":"deliver","vat":"three","method":"report"}
{"sender":"gov","seq":4,"type":"adopt","version":%[2]q,"index":"sha256:0"}
{"type":"block"}
{"sender":"gov","seq":5,"type":"adopt","version":%[2]q,"classification":%[3]q}
{"sender":"gov","seq":6,"type":"rollout"}
`, legacy, current, digest.FromBytes(classification)), 0o644))
	home := filepath.Join(folder, "home")
	must(t, os.MkdirAll(home, 0o755))
	engines := []string{"--from", "oci:" + w.built, "--insecure-ignore-policy"}
	enginery := func(want int, args ...string) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		status, out := run(ctx, t, home, args...)
		if status != want {
			t.Fatalf("%v: status %d, want %d\n%s", args, status, want, out)
		}
		return out
	}
	says := func(out string, facts ...string) {
		t.Helper()
		for _, fact := range facts {
			if !strings.Contains(out, fact) {
				t.Errorf("expected %q in:\n%s", fact, out)
			}
		}
	}
	dir := filepath.Join(folder, "demo")
	// Without engines nothing is done, by halves or otherwise; with them it goes on.
	says(enginery(exit.Unavailable, "chain", "run", dir, "--input", input), "block 1: input 0, init 1 of gov", "not installed", "--insecure-ignore-policy")
	// Nor does it adopt a version whose classification is not at hand, or another; then it goes on from there.
	demo := append([]string{"chain", "run", dir, "--input", input, "--drain"}, engines...)
	says(enginery(exit.Unavailable, demo...), "3 inputs accepted", `deliver 3 of alice is refused: there is no vat "three"`,
		`adopt 4 of gov is refused: the artifact in the adoption of `+current+` is "sha256:0"`, "block 3: input 0, adopt 5 of gov", "is not at hand", "put the file there")
	classifications := filepath.Join(dir, "classifications")
	must(t, os.MkdirAll(classifications, 0o755))
	voted := filepath.Join(classifications, digest.FromBytes(classification).Encoded())
	must(t, os.WriteFile(voted, []byte("{}"), 0o644))
	says(enginery(exit.Different, demo...), "expected "+digest.FromBytes(classification).String())
	must(t, os.WriteFile(voted, classification, 0o644))
	out := enginery(0, demo...)
	says(out, "2 inputs accepted", "upgraded v1")
	says(enginery(0, "chain", "results", dir, "alice"), `2 block 2 fulfilled #"hello"`)
	says(enginery(0, "upgrade", "status", dir), "legacy   "+legacy+"  1 vat\n", "current  "+current+"  1 vat\n", "is done\nsteps: 1 upgraded, 0 failed", "active, legacy only")
	says(enginery(0, "upgrade", "watch", dir), "adopted "+current, "vat-upgraded v1 "+legacy+" → "+current, "rollout-done")
	var view struct {
		Height  int64
		AppHash string
		Vats    []struct{ Name, State string }
	}
	must(t, json.Unmarshal([]byte(enginery(0, "upgrade", "status", dir, "--json")), &view))
	if len(view.Vats) != 2 || view.Vats[0].State != "active" {
		t.Errorf("%+v", view)
	}
	// What was fed is not done twice, and another node that is fed with the log has the same app hash.
	says(enginery(0, demo...), "there is nothing new in "+input, fmt.Sprintf("at block %d", view.Height))
	says(enginery(0, "upgrade", "status", dir), view.AppHash)
	more := filepath.Join(folder, "more.jsonl")
	line := `{"sender":"carol","seq":1,"type":"deliver","vat":"one","method":"ask","args":["two","again"]}`
	must(t, os.WriteFile(more, []byte(line), 0o644))
	again := append([]string{"chain", "run", dir, "--input", more, "--drain"}, engines...)
	height := fmt.Sprintf(`{"type":"block","height":%d}`, view.Height)
	says(enginery(1, again...), "deliver 1 of carol is for block 1, which was made without it", height)
	must(t, os.WriteFile(more, []byte(height+"\n"+line), 0o644))
	says(enginery(0, again...), "1 input accepted")
	says(enginery(0, "chain", "results", dir, "carol"), "fulfilled #\"again\"\n")
	must(t, json.Unmarshal([]byte(enginery(0, "upgrade", "status", dir, "--json")), &view))
	log := filepath.Join(folder, "log.jsonl")
	must(t, os.WriteFile(log, []byte(enginery(0, "chain", "log", dir, "--inputs")), 0o644))
	twin := filepath.Join(folder, "twin")
	says(enginery(0, append([]string{"chain", "run", twin, "--input", log, "--jobs", "1", "--workers", "1", "--classifications", classifications}, engines...)...), view.AppHash)
	says(enginery(exit.Usage, "chain", "run", dir), "--input and --socket")
	says(enginery(exit.Usage, append(slices.Clone(demo), "--workers", "0")...), "--workers 0", "expected at least 1")
	says(enginery(exit.Usage, "chain", "run", filepath.Join(folder, "none"), "--input", filepath.Join(folder, "none.jsonl")), "none.jsonl")
	says(enginery(exit.Usage, "upgrade", "status", filepath.Join(folder, "none")), "is no chain")
	says(enginery(exit.Failed, append([]string{"chain", "run", dir, "--socket", input}, engines...)...), "there already, and no socket")
	// A node that does not keep all records says what it has.
	kept := filepath.Join(folder, "kept")
	enginery(0, append([]string{"chain", "run", kept, "--input", log, "--keep", "1", "--classifications", classifications}, engines...)...)
	says(enginery(0, "chain", "log", kept), view.AppHash)
	says(enginery(exit.Failed, "chain", "log", kept, "--inputs"), fmt.Sprintf("--from %d prints the others", view.Height))

	// A node with a socket.
	socket := filepath.Join(folder, "demo.sock")
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	node := exec.CommandContext(ctx, "enginery", append([]string{"chain", "run", dir, "--socket", socket, "--interval", "10ms"}, engines...)...)
	node.Env = append(os.Environ(), "ENGINERY_HOME="+home)
	node.Cancel = func() error { return node.Process.Signal(os.Interrupt) }
	node.Stdout = t.Output()
	stderr, err := node.StderrPipe()
	must(t, err)
	must(t, node.Start())
	lines := bufio.NewScanner(stderr)
	for lines.Scan() && !strings.Contains(lines.Text(), "listening on") {
	}
	go io.Copy(t.Output(), stderr)
	send := func(want int, line string) string {
		t.Helper()
		cmd := exec.CommandContext(ctx, "enginery", "chain", "send", socket, "--wait")
		cmd.Stdin = strings.NewReader(line)
		out, _ := cmd.CombinedOutput()
		if status := cmd.ProcessState.ExitCode(); status != want {
			t.Fatalf("%s: status %d, want %d\n%s", line, status, want, out)
		}
		return string(out)
	}
	report := `{"sender":"alice","seq":4,"type":"deliver","vat":"one","method":"report"}`
	says(send(0, report), `"status":"accepted"`, `"body":"#{\"incarnation\":2,\"name\":\"one\",\"version\":1}"`)
	says(send(0, report), `"status":"duplicate"`)
	says(send(exit.Failed, `{"sender":"alice","seq":6,"type":"deliver","vat":"one","method":"report"}`), `"status":"early"`, "of 1 input: 1 early")
	says(send(exit.Failed, `{"sender":"gov","seq":7,"type":"adopt","version":"agoric-upgrade-99"}`), `"status":"refused"`)
	says(send(0, `{"sender":"gov","seq":7,"type":"upgrade","vat":"one","bundle":{"file":"`+filepath.Join(folder, "peer-2.json")+`"}}`), `"status":"accepted"`)
	says(send(exit.Usage, report+"\nnonsense\n"), `"status":"duplicate"`, "line 2: ")
	says(send(exit.Usage, `{"sender":"gov","seq":8,"type":"upgrade","vat":"one","bundel":"x"}`), "bundel")
	says(send(0, `{"sender":"alice","seq":5,"type":"deliver","vat":"one","method":"report","ack":4}`), `\"version\":2}"`)
	says(enginery(exit.Failed, append([]string{"chain", "run", dir, "--input", input}, engines...)...), "another process runs the chain")

	// The page, of a chain whose node is running.
	serve := exec.CommandContext(ctx, "enginery", "chain", "serve", dir, "127.0.0.1:0", "--json")
	serve.Env = node.Env
	stdout, err := serve.StdoutPipe()
	must(t, err)
	must(t, serve.Start())
	var started struct{ Address string }
	must(t, json.NewDecoder(stdout).Decode(&started))
	response, err := http.Get(started.Address)
	must(t, err)
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	must(t, err)
	says(string(body), current, `<a href="/vat/v1">one</a>`)
	stop()
	node.Wait()
	serve.Wait()
	if status := node.ProcessState.ExitCode(); status != exit.Interrupted {
		t.Errorf("the node has ended with status %d, expected %d", status, exit.Interrupted)
	}
}
