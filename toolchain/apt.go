package toolchain

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/enginery/enginery/internal/cas"
	"github.com/enginery/enginery/internal/progress"
)

// apt is a private state of the apt client: package lists and preferences of its own, with the host's sources, keys and
// network settings. The host's state is neither read nor changed.
type apt struct {
	dir  string
	spec *Spec
}

// aptConfig is read after the host's configuration, so that it has the last word.
const aptConfig = `
Dir::State "%[1]s";
Dir::State::lists "%[1]s/lists";
Dir::State::status "%[1]s/status";
Dir::State::extended_states "%[1]s/extended_states";
Dir::Cache "%[1]s/cache";
Dir::Cache::archives "%[1]s/cache/archives";
Dir::Cache::pkgcache "pkgcache.bin";
Dir::Cache::srcpkgcache "srcpkgcache.bin";
Dir::Etc::preferences "%[1]s/preferences";
Dir::Etc::preferencesparts "%[1]s/none";

#clear APT::Architectures;
APT::Architecture "%[2]s";
APT::Architectures { "%[3]s"; };
APT::Default-Release "";
APT::Install-Recommends "false";
APT::Install-Suggests "false";
APT::Sandbox::User "%[4]s";

// nothing unsigned
APT::Get::AllowUnauthenticated "false";
Acquire::AllowInsecureRepositories "false";
Acquire::AllowDowngradeToInsecureRepositories "false";

// no hooks, for they are about the host's state
#clear APT::Update;
#clear DPkg;
APT::Update::Error-Mode "any";

// no lists but those of binary packages
#clear Acquire::IndexTargets;
Acquire::Languages "none";
Acquire::IndexTargets::deb::Packages {
  MetaKey "$(COMPONENT)/binary-$(ARCHITECTURE)/Packages";
  flatMetaKey "Packages";
  ShortDescription "Packages";
  Description "$(RELEASE)/$(COMPONENT) $(ARCHITECTURE) Packages";
};
`

// aptPreferences admits packages of the suite itself only: not of its updates or security suites, which replace
// versions at any time.
const aptPreferences = `Package: *
Pin: release o=Debian,n=%s,c=main
Pin-Priority: 500

Package: *
Pin: release *
Pin-Priority: -1
`

// newApt makes a private state in dir, an empty directory, and reads the package lists.
func newApt(ctx context.Context, dir string, spec *Spec) (*apt, error) {
	if _, err := exec.LookPath("apt-get"); err != nil {
		return nil, fmt.Errorf("this machine has no apt client (%w)", err)
	}
	for _, d := range []string{"downloads", "lists/partial", "cache/archives/partial", "none"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, fmt.Errorf("making a private apt state: %w", err)
		}
	}
	sandboxUser := "_apt"
	if os.Getuid() == 0 {
		sandboxUser = "root" // another user has no access to dir
	}
	architectures := spec.architectures()
	for name, content := range map[string]string{
		"apt.conf":    fmt.Sprintf(aptConfig, dir, architectures[0], strings.Join(architectures, `"; "`), sandboxUser),
		"preferences": fmt.Sprintf(aptPreferences, spec.Suite),
		"status":      "",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			return nil, fmt.Errorf("making a private apt state: %w", err)
		}
	}
	a := &apt{dir: dir, spec: spec}
	task := progress.Start(ctx, "apt: package lists of "+spec.Suite, 0)
	err := a.update(ctx)
	task.Done(err)
	return a, err
}

// update reads the package lists. A source that fails does no harm as long as the suite is there.
func (a *apt) update(ctx context.Context) error {
	_, updateErr := a.run(ctx, nil, "apt-get", "update", "-q")
	if ctx.Err() != nil {
		return ctx.Err()
	}
	out, err := a.run(ctx, nil, "apt-get", "indextargets",
		"--format", "$(ORIGIN) $(CODENAME) $(COMPONENT) $(ARCHITECTURE)", "Created-By: Packages")
	if err != nil {
		return err
	}
	for _, arch := range a.spec.architectures() {
		if !slices.Contains(strings.Split(string(out), "\n"), "Debian "+a.spec.Suite+" main "+arch) {
			err := fmt.Errorf("none of this machine's apt sources serves the suite %s of Debian (component main, architecture %s); "+
				"add one to /etc/apt/sources.list.d", a.spec.Suite, arch)
			if updateErr != nil {
				err = fmt.Errorf("%w, or see why this failed: %w", err, updateErr)
			}
			return err
		}
	}
	return nil
}

// aptError is a failure of the apt client.
type aptError struct {
	command string
	said    []string // its messages that begin with "E:"
	err     error
}

func (e *aptError) Error() string {
	if len(e.said) == 0 {
		return fmt.Sprintf("%s: %v", e.command, e.err)
	}
	return fmt.Sprintf("%s: %v: %s", e.command, e.err, strings.Join(e.said, "; "))
}

func (e *aptError) Unwrap() error { return e.err }

// run runs an apt command and returns its output. What the command writes to file descriptor 3 goes to status.
func (a *apt) run(ctx context.Context, status *os.File, command string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, command, append([]string{"-c", filepath.Join(a.dir, "apt.conf")}, args...)...)
	cmd.Dir = filepath.Join(a.dir, "downloads")
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	if status != nil {
		cmd.ExtraFiles = []*os.File{status}
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		e := &aptError{command: command + " " + args[0], err: err}
		for line := range strings.Lines(stderr.String()) {
			if msg, ok := strings.CutPrefix(line, "E: "); ok {
				e.said = append(e.said, strings.TrimSpace(msg))
			}
		}
		return nil, e
	}
	return stdout.Bytes(), nil
}

// stanza is a paragraph of a Debian control file.
type stanza map[string]string

// show returns what the package lists say of packages, which are named as apt-cache's arguments.
func (a *apt) show(ctx context.Context, names []string) ([]stanza, error) {
	out, err := a.run(ctx, nil, "apt-cache", append([]string{"show", "--no-all-versions"}, names...)...)
	if err != nil {
		return nil, err
	}
	var all []stanza
	for paragraph := range strings.SplitSeq(string(out), "\n\n") {
		s := make(stanza)
		for line := range strings.Lines(paragraph) {
			if key, value, ok := strings.Cut(line, ": "); ok && !strings.HasPrefix(line, " ") {
				s[key] = strings.TrimSpace(value)
			}
		}
		if s["Package"] != "" {
			all = append(all, s)
		}
	}
	return all, nil
}

// pretendInstalled tells apt that packages are installed, so that it adds neither them nor what they depend on. They are
// on hold, as apt would otherwise take the real ones for upgrades.
func (a *apt) pretendInstalled(ctx context.Context, names []string) error {
	if len(names) == 0 {
		return nil
	}
	stanzas, err := a.show(ctx, names)
	if err != nil {
		return err
	}
	var status strings.Builder
	for _, s := range stanzas {
		status.WriteString("Status: hold ok installed\n")
		for _, key := range []string{"Package", "Version", "Architecture", "Multi-Arch", "Provides"} {
			if s[key] != "" {
				fmt.Fprintf(&status, "%s: %s\n", key, s[key])
			}
		}
		status.WriteString("\n")
	}
	return os.WriteFile(filepath.Join(a.dir, "status"), []byte(status.String()), 0o644)
}

var (
	instRE    = regexp.MustCompile(`(?m)^Inst ([^ :]+)(?::\S+)? \((\S+) .*\[(\S+)\]\)`)
	upgradeRE = regexp.MustCompile(`(?m)^(Inst \S+ \[|Remv )`)
)

// resolve returns the packages that are wanted, with all that they depend on but for what is left out.
func (a *apt) resolve(ctx context.Context) ([]Package, error) {
	spec := a.spec
	if err := a.pretendInstalled(ctx, spec.LeaveOut); err != nil {
		return nil, err
	}
	out, err := a.run(ctx, nil, "apt-get", append([]string{"install", "--simulate", "--yes"}, spec.Wanted...)...)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, m := range instRE.FindAllStringSubmatch(string(out), -1) {
		names = append(names, Package{Name: m[1], Version: m[2], Architecture: m[3]}.String())
	}
	if len(names) == 0 || upgradeRE.Match(out) {
		return nil, fmt.Errorf("apt-get install --simulate gave an answer that is not understood:\n%s", out)
	}
	stanzas, err := a.show(ctx, names)
	if err != nil {
		return nil, err
	}
	var packages []Package
	dependencies := ""
	for _, s := range stanzas {
		p := Package{Name: s["Package"], Version: s["Version"], Architecture: s["Architecture"], SHA256: s["SHA256"]}
		if p.Size, err = strconv.ParseInt(s["Size"], 10, 64); err != nil {
			return nil, fmt.Errorf("package %s: size %q: %w", p, s["Size"], err)
		}
		source, version, ok := strings.Cut(s["Source"], " (")
		if source == "" {
			source = p.Name
		}
		if !ok {
			version = p.Version
		}
		p.Source = source + " " + strings.TrimSuffix(version, ")")
		if !slices.Contains(packages, p) { // two sources may serve the same package
			packages = append(packages, p)
		}
		dependencies += ", " + s["Depends"] + ", " + s["Pre-Depends"]
	}
	if len(packages) != len(names) {
		return nil, fmt.Errorf("apt would install %d packages, and its lists describe %d of them: %s", len(names), len(packages), strings.Join(names, " "))
	}
	for _, n := range spec.LeaveOut {
		bare, _, _ := strings.Cut(n, ":")
		if !regexp.MustCompile(`[,|] *` + regexp.QuoteMeta(bare) + `( |,|$)`).MatchString(dependencies) {
			return nil, fmt.Errorf("none of the packages depends on %s: take it out of leave-out in %s.toml", n, spec.Name)
		}
	}
	slices.SortFunc(packages, comparePackages)
	return packages, nil
}

// fetch downloads packages into the store. When it fails, those that were whole are there all the same.
func (a *apt) fetch(ctx context.Context, store *cas.Store, packages []Package) error {
	args := []string{"download", "-q", "-o", "APT::Status-Fd=3"}
	var total int64
	for _, p := range packages {
		args = append(args, p.String())
		total += p.Size
	}
	task := progress.Start(ctx, fmt.Sprintf("apt: %d packages of toolchain %s", len(packages), a.spec.Name), total)
	err := a.download(ctx, args, total, task)
	if notFound(err) {
		err = fmt.Errorf("the suite %s no longer has what %s.lock names: %w", a.spec.Suite, a.spec.Name, err)
	}
	for _, p := range packages {
		if perr := a.store(ctx, store, p); perr != nil && err == nil {
			err = perr
		}
	}
	task.Done(err)
	return err
}

func (a *apt) download(ctx context.Context, args []string, total int64, task *progress.Task) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		watch(r, total, task)
	}()
	_, err = a.run(ctx, w, "apt-get", args...)
	w.Close()
	<-watched
	return err
}

// store puts a package that has been downloaded into the store.
func (a *apt) store(ctx context.Context, store *cas.Store, p Package) error {
	name := fmt.Sprintf("%s_%s_%s.deb", p.Name, strings.ReplaceAll(p.Version, ":", "%3a"), p.Architecture)
	f, err := os.Open(filepath.Join(a.dir, "downloads", name))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("apt-get download brought no package %s", p)
	} else if err != nil {
		return err
	}
	defer f.Close()
	if err := store.PutExpected(ctx, f, p.Digest()); err != nil {
		return fmt.Errorf("package %s from apt is not the one in %s.lock: %w", p, a.spec.Name, err)
	}
	return nil
}

// watch reads apt's status lines, "dlstatus:FILE:PERCENT:TEXT".
func watch(r io.Reader, total int64, task *progress.Task) {
	var done int64
	for lines := bufio.NewScanner(r); lines.Scan(); {
		fields := strings.SplitN(lines.Text(), ":", 4)
		if len(fields) < 3 || fields[0] != "dlstatus" {
			continue
		}
		if percent, err := strconv.ParseFloat(fields[2], 64); err == nil {
			if n := int64(percent / 100 * float64(total)); n > done {
				task.Add(n - done)
				done = n
			}
		}
	}
}

// notFound reports whether err is apt's complaint that it does not serve a package in the version asked for.
func notFound(err error) bool {
	var e *aptError
	return errors.As(err, &e) && slices.ContainsFunc(e.said, func(s string) bool {
		return strings.Contains(s, "was not found") || strings.Contains(s, "Unable to locate package")
	})
}

// architectures returns Debian's names of the architectures that packages come from, the host's first.
func (s *Spec) architectures() []string {
	_, host, _ := strings.Cut(s.Host, "/") // Debian has the same names for the platforms that platformRE admits
	all := []string{host}
	for _, n := range s.Wanted {
		if _, arch, ok := strings.Cut(n, ":"); ok && !slices.Contains(all, arch) {
			all = append(all, arch)
		}
	}
	return all
}
