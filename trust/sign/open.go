package sign

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/sigstore/cosign/v2/pkg/providers"
	_ "github.com/sigstore/cosign/v2/pkg/providers/envvar" // SIGSTORE_ID_TOKEN
	_ "github.com/sigstore/cosign/v2/pkg/providers/github"
	"golang.org/x/term"
)

// The public sigstore deployment.
var Public = Services{Fulcio: "https://fulcio.sigstore.dev", Rekor: "https://rekor.sigstore.dev"}

// KeylessRef is the reference of a signer without a key.
const KeylessRef = "keyless"

// Open returns the signer that ref names: KeylessRef for an identity that the surroundings vouch for (a GitHub workflow, or SIGSTORE_ID_TOKEN),
// certified and logged by services, or else a private key, see OpenKey. The password of a key is COSIGN_PASSWORD, or asked for on the terminal.
func Open(ctx context.Context, ref string, services Services) (*Signer, error) {
	if ref != KeylessRef {
		return OpenKey(ctx, ref, AskPassword)
	}
	if !providers.Enabled(ctx) {
		return nil, errors.New("nothing here vouches for an identity: expected a GitHub workflow with the permission id-token: write, or a token in SIGSTORE_ID_TOKEN")
	}
	token, err := providers.Provide(ctx, "sigstore")
	if err != nil {
		return nil, fmt.Errorf("asking for an identity token: %w", err)
	}
	return Keyless(token, services)
}

// AskPassword returns COSIGN_PASSWORD, or what is typed on the terminal.
func AskPassword() ([]byte, error) {
	if p, ok := os.LookupEnv(PasswordEnv); ok {
		return []byte(p), nil
	}
	tty := int(os.Stdin.Fd())
	if !term.IsTerminal(tty) {
		return nil, fmt.Errorf("the private key needs a password: expected %s, or a terminal to ask on", PasswordEnv)
	}
	fmt.Fprint(os.Stderr, "Password of the private key: ")
	defer fmt.Fprintln(os.Stderr)
	return term.ReadPassword(tty)
}
