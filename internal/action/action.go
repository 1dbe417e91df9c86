// Package action describes hermetic steps as the Remote Execution API does: by messages that name each other, and all that goes into a step, by
// digest.
package action

import (
	"cmp"
	"fmt"
	"slices"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"github.com/enginery/enginery/internal/cas"
	"google.golang.org/protobuf/proto"
)

// Action is a step: a command that is run where its inputs are, and makes one output.
type Action struct {
	Digest  cas.Digest // of the Action message; it names the result
	Command *repb.Command
	Inputs  cas.Digest // the input root

	blobs map[cas.Digest][]byte
}

// New returns the action that a command and an input root make. The message has the rest: platform, timeout, salt. New fills in the digests,
// and sorts what must be sorted so that equal actions have equal digests (remote_execution.proto, Command, Platform and Directory).
// Contents are those of inputs that the caller has at hand.
func New(message *repb.Action, command *repb.Command, root *repb.Directory, contents ...[]byte) (*Action, error) {
	if len(command.OutputPaths) != 1 {
		return nil, fmt.Errorf("an action has outputs %q, expected one", command.OutputPaths)
	}
	slices.SortFunc(command.EnvironmentVariables, func(a, b *repb.Command_EnvironmentVariable) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(message.Platform.GetProperties(), func(a, b *repb.Platform_Property) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Value, b.Value))
	})
	a := &Action{Command: command, blobs: make(map[cas.Digest][]byte)}
	for _, content := range contents {
		a.blobs[cas.OfBytes(content)] = content
	}
	b, inputs, err := cas.EncodeDirectory(root)
	if err != nil {
		return nil, err
	}
	a.Inputs = inputs
	a.blobs[inputs] = b
	commandDigest, err := a.encode(command)
	if err != nil {
		return nil, err
	}
	message.CommandDigest, message.InputRootDigest = commandDigest.Proto(), inputs.Proto()
	a.Digest, err = a.encode(message)
	return a, err
}

func (a *Action) encode(m proto.Message) (cas.Digest, error) {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return cas.Digest{}, fmt.Errorf("encoding an action: %w", err)
	}
	d := cas.OfBytes(b)
	a.blobs[d] = b
	return d, nil
}

// Blobs returns what the action consists of, by digest: the encoded Action, its Command, the input root, and the contents that New was given. An
// executor finds them in the store.
func (a *Action) Blobs() map[cas.Digest][]byte { return a.blobs }

// Output returns the digest of the output that a result of the action has.
func (a *Action) Output(result *repb.ActionResult) (cas.Digest, error) {
	for _, f := range result.OutputFiles {
		if f.Path == a.Command.OutputPaths[0] {
			return cas.FromProto(f.Digest), nil
		}
	}
	return cas.Digest{}, fmt.Errorf("the result of action %s has no file %s", a.Digest, a.Command.OutputPaths[0])
}
