package chain_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/enginery/enginery/chain"
	"github.com/enginery/enginery/chain/page"
	"github.com/enginery/enginery/internal/browsertest"
	"github.com/enginery/enginery/internal/vattest"
	"github.com/enginery/enginery/swingstore"
	"github.com/enginery/enginery/vat"
)

// screenshotsEnv names a folder that pictures of the pages are put into.
const screenshotsEnv = "ENGINERY_SCREENSHOTS"

// The pages show a chain in the middle of a rollout: on a phone, in the dark, without JavaScript; and with it they follow.
func TestPage(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	s := rollout(t, 7, 10, 6)
	dir := t.TempDir()
	n := open(t, dir, vattest.Engines(t, oldVersion, newVersion), chain.Options{Jobs: 2})
	defer n.Close()
	enough := errors.New("enough")
	feed := func(until func(b *chain.Block) bool) *chain.Block {
		t.Helper()
		feeding, stop := context.WithCancelCause(ctx)
		var last *chain.Block
		err := n.Feed(feeding, bytes.NewReader(s.Bytes()), "", func(b *chain.Block) {
			if last = b; until(b) {
				stop(enough)
			}
		})
		if !errors.Is(err, enough) {
			t.Fatal(err)
		}
		return last
	}
	store, err := swingstore.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	server := httptest.NewServer(page.Handler(store))
	defer server.Close()
	defer server.CloseClientConnections() // one of them lasts as long as its browser

	status := func(path string) (int, string) {
		t.Helper()
		r, err := http.Get(server.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		return r.StatusCode, string(b)
	}
	if code, text := status("/"); code != http.StatusOK || !strings.Contains(text, "has no versions yet") {
		t.Errorf("of a chain without blocks: %d, %s", code, text)
	}
	b := feed(func(b *chain.Block) bool { return b.Tally.Suspended == int64(len(faults)) && b.Tally.Queued > 5 })
	for path, want := range map[string]int{"/vat/v99": 404, "/block/999": 404, "/block/x": 404, "/none": 404, "/style.css": 200, "/live.js": 200} {
		if code, text := status(path); code != want {
			t.Errorf("%s: %d, expected %d: %s", path, code, want, text)
		}
	}

	contains := func(p *browsertest.Page, what string, facts ...string) {
		t.Helper()
		text := p.Text()
		for _, fact := range facts {
			if !strings.Contains(text, fact) {
				t.Errorf("%s does not say %q:\n%s", what, fact, text)
			}
		}
		if over := p.Overflow(); over > 0 {
			t.Errorf("%s is %d pixels too wide", what, over)
		}
		if folder := os.Getenv(screenshotsEnv); folder != "" {
			p.Screenshot(filepath.Join(folder, what+".png"))
		}
	}
	phone := browsertest.View{Width: browsertest.Phone, Height: 740, NoScript: true}
	dark := browsertest.View{Width: 1280, Height: 900, Dark: true, NoScript: true}
	facts := []string{
		fmt.Sprintf("Block %d", b.Height), oldVersion, newVersion, "5 suspended", "running", "5 failed", "legacy only", "Compute meter exceeded",
		"version 2 does not start", fmt.Sprintf("%d\n", b.Tally.Queued),
	}
	if b.Tally.Upgrading == 0 && strings.Contains(b.Rollout, "done") {
		facts[4] = "done"
	}
	contains(browsertest.Open(t, server.URL, phone), "phone", facts...)
	contains(browsertest.Open(t, server.URL, dark), "dark", facts...)
	contains(browsertest.Open(t, server.URL, browsertest.View{NoScript: true}), "light", facts...)
	var suspended *chain.View
	if suspended, err = chain.Look(ctx, &store.Reader, chain.Most{Vats: 1}); err != nil || len(suspended.Vats) != 1 {
		t.Fatalf("%+v, %v", suspended, err)
	}
	vat := suspended.Vats[0]
	contains(browsertest.Open(t, server.URL+"/vat/"+vat.ID, phone), "vat", vat.Name, "suspended, paused", "was "+oldVersion, vat.Failure.Problem, "What waits for it", "Transcript")
	height := vat.Failure.Height
	contains(browsertest.Open(t, fmt.Sprintf("%s/block/%d", server.URL, height), phone), "block", "upgrade-failed", "upgrades", oldVersion+" → "+newVersion)

	p := browsertest.Open(t, server.URL, browsertest.View{Width: 1280, Height: 900})
	p.WaitFor(`document.querySelector('#live').textContent === 'live'`)
	next := feed(func(*chain.Block) bool { return true })
	p.WaitFor(fmt.Sprintf(`document.querySelector('h1').textContent === 'Block %d'`, next.Height))
	contains(p, "live", "live")
}

// A page that still loads a block when the next one comes shows that afterwards, also if it is the last for long.
func TestPageFollows(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	n := open(t, dir, func(string) (*vat.Engine, error) { return nil, nil }, chain.Options{})
	defer n.Close()
	to := func(height int) {
		t.Helper()
		if err := n.Feed(t.Context(), strings.NewReader(fmt.Sprintf(`{"type":"block","height":%d}`, height)), "", nil); err != nil {
			t.Fatal(err)
		}
	}
	to(1)
	store, err := swingstore.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	asked, answer := make(chan bool, 10), make(chan bool)
	pages := page.Handler(store)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/" {
			pages.ServeHTTP(w, r)
			return
		}
		late := httptest.NewRecorder()
		pages.ServeHTTP(late, r)
		asked <- true
		<-answer
		w.Write(late.Body.Bytes())
	}))
	defer server.Close()
	defer server.CloseClientConnections()
	go func() { answer <- true }()
	p := browsertest.Open(t, server.URL, browsertest.View{Width: 1280, Height: 900})
	<-asked
	p.WaitFor(`document.querySelector('#live').textContent === 'live'`)
	browsertest.Eval[bool](p, `source.addEventListener('message', ({ data }) => (document.title = 'told of ' + data)), true`)
	to(2)
	<-asked
	to(3)
	p.WaitFor(`document.title === 'told of 3'`)
	close(answer)
	p.WaitFor(`document.querySelector('h1').textContent === 'Block 3'`)
}
