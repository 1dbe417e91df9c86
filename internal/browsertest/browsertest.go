// Package browsertest looks at pages as people do: in Chromium, without a screen.
package browsertest

import (
	"context"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
)

// View is how a page is looked at.
type View struct {
	Width, Height int64 // CSS pixels; 0: 1280 by 800
	Dark          bool  // the user prefers dark colours
	Print         bool  // as it would be printed
	NoScript      bool  // without JavaScript
}

// Phone is the width of a small telephone.
const Phone = 360

// Page is an open page.
type Page struct {
	t     testing.TB
	ctx   context.Context
	width int64
}

// Open opens a page. The test is skipped if this machine has no Chromium: go tool mage test installs it, if it may.
func Open(t testing.TB, url string, v View) *Page {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		t.Skipf("NOT TESTED: %s in a browser: install the Debian package chromium, as root: apt-get install chromium", t.Name())
	}
	if v.Width == 0 {
		v.Width, v.Height = 1280, 800
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path),
		chromedp.NoSandbox, // it does not start as root otherwise
		chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-gpu", true),
		chromedp.Flag("disable-quic", true),
	)
	// Not the test's own context: it ends before its clean-up, which ends the browser in good order.
	ctx, endBrowser := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(endBrowser)
	ctx, end := chromedp.NewContext(ctx)
	t.Cleanup(end)
	p := &Page{t, ctx, v.Width}
	scheme, media := "light", ""
	if v.Dark {
		scheme = "dark"
	}
	if v.Print {
		media = "print"
	}
	command(p, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{
		Width: v.Width, Height: v.Height, DeviceScaleFactor: 1, Mobile: v.Width <= Phone,
	})
	command(p, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Media: media, Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
	})
	command(p, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: v.NoScript})
	run(p, chromedp.Navigate(url))
	return p
}

func command[P, R any](p *Page, c cdp.Command[P, R], params P) {
	p.t.Helper()
	if _, err := chromedp.Call(p.ctx, c, params); err != nil {
		p.t.Fatal(err)
	}
}

func run[T any](p *Page, action chromedp.Action[T]) T {
	p.t.Helper()
	value, err := chromedp.Run(p.ctx, action)
	if err != nil {
		p.t.Fatal(err)
	}
	return value
}

// Text returns what can be read on the page.
func (p *Page) Text() string {
	p.t.Helper()
	return Eval[string](p, "document.body.innerText")
}

// Eval evaluates JavaScript in the page, also where the page's own is not run, and returns its value, decoded from JSON.
func Eval[T any](p *Page, script string) T {
	p.t.Helper()
	return run(p, chromedp.Evaluate[T](script))
}

// Overflow returns by how many pixels the page is wider than the view; more than 0 is a page that has to be scrolled sideways, or was
// laid out for another screen than a phone's.
func (p *Page) Overflow() int64 {
	p.t.Helper()
	return Eval[int64](p, "document.documentElement.scrollWidth") - p.width
}

// WaitFor waits until a script's value is true, for at most a minute.
func (p *Page) WaitFor(script string) {
	p.t.Helper()
	run(p, chromedp.Poll[chromedp.Void](script, chromedp.WithPollingTimeout(time.Minute)))
}

// Screenshot writes a picture of the whole page, a PNG.
func (p *Page) Screenshot(path string) {
	p.t.Helper()
	if err := os.WriteFile(path, run(p, chromedp.FullScreenshot(100)), 0o644); err != nil {
		p.t.Fatal(err)
	}
}
