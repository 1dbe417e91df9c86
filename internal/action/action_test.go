package action_test

import (
	"slices"
	"strings"
	"testing"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"github.com/enginery/enginery/internal/action"
	"github.com/enginery/enginery/internal/cas"
	"google.golang.org/protobuf/proto"
)

// example returns an action, with its lists reversed if shuffled.
func example(t *testing.T, shuffled bool) *action.Action {
	t.Helper()
	env := []*repb.Command_EnvironmentVariable{{Name: "LANG", Value: "C"}, {Name: "TZ", Value: "UTC"}}
	properties := []*repb.Platform_Property{{Name: "ISA", Value: "x86-64"}, {Name: "ISA", Value: "x86-avx2"}, {Name: "OSFamily", Value: "linux"}}
	files := []*repb.FileNode{{Name: "a", Digest: cas.OfBytes([]byte("A")).Proto()}, {Name: "b", Digest: cas.OfBytes([]byte("B")).Proto()}}
	if shuffled {
		slices.Reverse(env)
		slices.Reverse(properties)
		slices.Reverse(files)
	}
	a, err := action.New(
		&repb.Action{Platform: &repb.Platform{Properties: properties}, Salt: []byte("salt")},
		&repb.Command{Arguments: []string{"cp", "a", "c"}, EnvironmentVariables: env, OutputPaths: []string{"c"}},
		&repb.Directory{Files: files}, []byte("A"), []byte("B"))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestNew(t *testing.T) {
	a := example(t, false)
	if want := "b83b93b2597f87afb91c7de8348c1348edf135f20c2e89ee8ec76b893f45dc3b/200"; a.Digest.String() != want {
		t.Errorf("the digest is %s, and was %s: results that are known are no longer found", a.Digest, want)
	}
	if b := example(t, true); b.Digest != a.Digest {
		t.Errorf("in another order, the digest is %s, expected %s", b.Digest, a.Digest)
	}
	for d, b := range a.Blobs() {
		if cas.OfBytes(b) != d {
			t.Errorf("%q is not what %s names", b, d)
		}
	}
	message, command := new(repb.Action), new(repb.Command)
	for d, m := range map[cas.Digest]proto.Message{a.Digest: message, cas.OfBytes(encode(t, a.Command)): command} {
		if err := proto.Unmarshal(a.Blobs()[d], m); err != nil {
			t.Fatal(err)
		}
	}
	if !proto.Equal(command, a.Command) || cas.FromProto(message.InputRootDigest) != a.Inputs || cas.FromProto(message.CommandDigest) != cas.OfBytes(encode(t, command)) {
		t.Errorf("the message is %v, of command %v", message, command)
	}
	// All that an executor needs is there.
	s, err := cas.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, b := range a.Blobs() {
		if _, err := s.PutBytes(t.Context(), b); err != nil {
			t.Fatal(err)
		}
	}
	if !s.HasTree(a.Inputs) {
		t.Error("the store does not have the inputs")
	}
}

func encode(t *testing.T, m proto.Message) []byte {
	t.Helper()
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestOutput(t *testing.T) {
	a := example(t, false)
	want := cas.OfBytes([]byte("A"))
	result := &repb.ActionResult{OutputFiles: []*repb.OutputFile{{Path: "log", Digest: cas.OfBytes(nil).Proto()}, {Path: "c", Digest: want.Proto()}}}
	if got, err := a.Output(result); err != nil || got != want {
		t.Errorf("%v, %v; expected %v", got, err, want)
	}
	result.OutputFiles = result.OutputFiles[:1]
	if _, err := a.Output(result); err == nil || !strings.Contains(err.Error(), "has no file c") {
		t.Errorf("of a result without it: %v", err)
	}
	if _, err := action.New(&repb.Action{}, &repb.Command{OutputPaths: []string{"a", "b"}}, &repb.Directory{}); err == nil {
		t.Error("an action with two outputs is none")
	}
}
