package releaseindex_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/enginery/enginery/engines"
	"github.com/enginery/enginery/releaseindex"
	"github.com/enginery/enginery/repository"
)

// childEnv makes the test's program one that refreshes, again and again: home, root.json and repositories, separated by newlines.
const childEnv = "TEST_RELEASEINDEX"

func TestMain(m *testing.M) {
	if job := os.Getenv(childEnv); job != "" {
		refreshForever(strings.Split(job, "\n"))
	}
	os.Exit(m.Run())
}

func refreshForever(job []string) {
	root, err := os.ReadFile(job[1])
	if err != nil {
		panic(err)
	}
	s := releaseindex.Open(engines.Open(job[0]), root)
	for {
		for _, ref := range job[2:] {
			repo, err := repository.Open(ref)
			if err != nil {
				panic(err)
			}
			i, err := s.Refresh(context.Background(), []repository.Repository{repo}, noon)
			if err != nil && !errors.Is(err, releaseindex.ErrRollback) {
				panic(err)
			}
			fmt.Println(i.Version)
		}
	}
}

// Processes that refresh are killed at any moment. What is there afterwards is whole, and no older than before.
func TestKilled(t *testing.T) {
	t.Parallel()
	p := newPublisher(t)
	repo := open(t, "oci:"+t.TempDir())
	root := filepath.Join(t.TempDir(), "root.json")
	if err := os.WriteFile(root, p.roots[0], 0o644); err != nil {
		t.Fatal(err)
	}
	var last int64
	home := engines.Open(t.TempDir())
	s := releaseindex.Open(home, p.roots[0])
	for round := range 8 {
		job := []string{home.Home(), root}
		for range 4 {
			p.publish(t, repo, noon)
			job = append(job, copyIndex(t, repo, nil).Name())
		}
		var children []*exec.Cmd
		for range 3 {
			cmd := exec.CommandContext(t.Context(), os.Args[0])
			cmd.Env = append(os.Environ(), childEnv+"="+strings.Join(job, "\n"))
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			if _, err := out.Read(make([]byte, 1)); err != nil { // it has begun
				t.Errorf("a process that refreshes: %v", err)
			}
			children = append(children, cmd)
		}
		time.Sleep(time.Duration(rand.IntN(30)) * time.Millisecond)
		for _, cmd := range children {
			cmd.Process.Kill()
			cmd.Wait()
		}
		i, err := s.Load()
		if err != nil || i.Version <= last || i.Version > int64(4*(round+1)) {
			t.Fatalf("round %d: %+v, %v after version %d", round, i, err, last)
		}
		last = i.Version
		if _, err := home.Channels(); err != nil {
			t.Errorf("round %d: %v", round, err)
		}
	}
	if i, err := s.Refresh(t.Context(), []repository.Repository{repo}, noon); err != nil || i.Version != 32 {
		t.Errorf("afterwards: %+v, %v", i, err)
	}
	left, err := filepath.Glob(filepath.Join(home.Home(), "state", ".release-index*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left %v, %v", left, err)
	}
}
