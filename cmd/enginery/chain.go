package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/enginery/enginery/chain"
	"github.com/enginery/enginery/chain/page"
	"github.com/enginery/enginery/internal/exit"
	"github.com/enginery/enginery/internal/printable"
	"github.com/enginery/enginery/swingstore"
	"github.com/enginery/enginery/upgrade"
	"github.com/enginery/enginery/vat"
)

func chainCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "chain",
		Short: "Run vats in blocks on a single node, and move them to new versions",
		Long: `Chain runs vats on real workers, in blocks: it is fed from a file or a Unix socket with messages and decisions of governance, commits each block
whole, hashes the state, and moves vats to a new version over many blocks. docs/chain.md has the inputs.

DIR is a chain's folder. One node runs it; the others of these commands only read it, also while it goes on.`,
	}
	cmd.AddCommand(chainRun(a), chainSend(a), chainResults(a), chainLog(a), chainServe(a))
	return cmd
}

func chainRun(a *app) *cobra.Command {
	var g guest
	var input, socket, classifications string
	var drain, console bool
	var interval time.Duration
	o := chain.Options{}
	cmd := &cobra.Command{
		Use:   "run DIR",
		Short: "Make blocks, of a file or of what comes from a socket",
		Long: `Run makes blocks until the file ends, or Ctrl-C. A file can be run again at any time: what is in the chain already is not done twice. Each block is
a line on standard output: height, app hash, what it did.

A block that cannot be made here and now, since an engine is missing or the disk is full, is not made: nothing of it is kept. With a file, run ends then
and the same command goes on later; with a socket it tries again, and says why.

` + guestEngineHelp,
		Example: `  enginery chain run demo --input demo.jsonl --drain
  enginery chain run demo --socket demo.sock --jobs 4
  enginery chain run demo --input demo.jsonl --from oci:out/oci --insecure-ignore-policy --json`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeChain,
		RunE: func(cmd *cobra.Command, args []string) error {
			if (input == "") == (socket == "") {
				return usage(errors.New("run needs one of --input and --socket"))
			}
			if o.Jobs < 1 || o.Workers < 1 || o.Keep < 0 {
				return usage(fmt.Errorf("--jobs %d --workers %d --keep %d: expected at least 1, 1 and 0", o.Jobs, o.Workers, o.Keep))
			}
			file := os.Stdin
			if input != "" && input != "-" {
				var err error
				if file, err = os.Open(input); err != nil {
					return usage(err)
				}
				defer file.Close()
			}
			o.Dir = args[0]
			if classifications == "" {
				classifications = filepath.Join(o.Dir, "classifications")
			}
			es := &chainEngines{a: a, cmd: cmd, g: &g, classifications: classifications, all: make(map[string]*vat.Engine)}
			o.Engines, o.Check = es.get, es.check
			if console {
				o.Console = func(vat, source, level string, args []json.RawMessage) {
					fmt.Fprintf(cmd.ErrOrStderr(), "%s %s %s: %s\n", vat, source, level, bytes.Join(rawBytes(args), []byte(" ")))
				}
			}
			n, err := chain.Open(o)
			if err != nil {
				return err
			}
			defer n.Close()
			report := func(b *chain.Block) { a.printBlock(cmd, b) }
			if socket != "" {
				return runSocket(cmd, n, socket, interval, report)
			}
			before := n.Height()
			if err := runFile(cmd.Context(), n, file, input, drain, report); err != nil {
				return err
			}
			if n.Height() == before && !a.quiet {
				fmt.Fprintf(cmd.ErrOrStderr(), "there is nothing new in %s: the chain is at block %d\n", input, before)
			}
			return nil
		},
	}
	g.sources.addTo(cmd)
	f := cmd.Flags()
	f.BoolVar(&g.ignore, "insecure-ignore-policy", false, "run from the layouts of --from what nobody has vouched for, if it is as recorded; not for consensus")
	f.StringVar(&input, "input", "", "`file` with inputs, lines of JSON; - is standard input")
	f.StringVar(&socket, "socket", "", "Unix `socket` to take inputs from")
	f.StringVar(&classifications, "classifications", "", "`folder` with the files that adoptions name, each under the digits of its digest (default DIR/classifications)")
	f.BoolVar(&drain, "drain", false, "after the file, make blocks until nothing is left to do")
	f.BoolVar(&console, "console", false, "show what vats print, on standard error")
	f.DurationVar(&interval, "interval", time.Second, "with a socket: time between blocks")
	f.IntVar(&o.Jobs, "jobs", runtime.NumCPU(), "workers that are started at once; the blocks are the same")
	f.IntVar(&o.Workers, "workers", 50, "workers that are kept; the blocks are the same")
	f.IntVar(&o.Keep, "keep", 0, "blocks whose record is kept; 0 is all")
	return cmd
}

const guestEngineHelp = `The engines are those that the node has (enginery fetch). What a developer has just built is signed by nobody: --insecure-ignore-policy runs it
straight from the layout, --from oci:out/oci.`

func rawBytes(args []json.RawMessage) [][]byte {
	all := make([][]byte, len(args))
	for i, arg := range args {
		all[i] = arg
	}
	return all
}

// chainEngines are the engines of a chain's vats.
type chainEngines struct {
	a               *app
	cmd             *cobra.Command
	g               *guest
	classifications string

	mu  sync.Mutex
	all map[string]*vat.Engine
}

func (e *chainEngines) get(version string) (*vat.Engine, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if found := e.all[version]; found != nil {
		return found, nil
	}
	g := *e.g
	g.archival = true // the chain's own state says what is in service
	o, err := e.a.guest(e.cmd, &g, version)
	if err != nil {
		return nil, err
	}
	found, err := vat.Installed(o.Engine)
	if err == nil {
		e.all[version] = found
	}
	return found, err
}

// check says whether this node has what an adoption names.
func (e *chainEngines) check(_ context.Context, a upgrade.Adoption) error {
	found, err := e.get(a.Version)
	if err != nil {
		return err
	}
	if have := found.Worker.Engine.Index; a.Index != "" && a.Index != have {
		return &exit.Error{Err: fmt.Errorf("%s is %s here, and the adoption says %s; fetch that", a.Version, have, a.Index), Code: exit.Different}
	}
	if a.Classification == "" {
		return nil
	}
	d, err := digest.Parse(a.Classification)
	if err != nil || d.Algorithm() != digest.SHA256 {
		return upgrade.CheckClassification(nil, a) // which refuses it, whatever is at hand
	}
	path := filepath.Join(e.classifications, d.Encoded())
	content, err := os.ReadFile(path)
	if err != nil {
		return &exit.Error{Err: fmt.Errorf("the replay classification of %s is not at hand: %w; put the file there", a.Version, err), Code: exit.Unavailable}
	}
	if have := d.Algorithm().FromBytes(content); have != d {
		return &exit.Error{Err: fmt.Errorf("%s: expected %s, found %s", path, d, have), Code: exit.Different}
	}
	return upgrade.CheckClassification(content, a)
}

func runFile(ctx context.Context, n *chain.Node, file io.Reader, input string, drain bool, report func(*chain.Block)) error {
	dir := filepath.Dir(input) // "." of standard input, too
	if err := n.Feed(ctx, file, dir, report); err != nil {
		return fmt.Errorf("%s: %w", input, err)
	}
	if drain {
		return n.Drain(ctx, 1_000_000, report)
	}
	return nil
}

func runSocket(cmd *cobra.Command, n *chain.Node, path string, interval time.Duration, report func(*chain.Block)) error {
	l, err := n.Listen(path)
	if err != nil {
		return err
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "at block %d, listening on %s\n", n.Height(), path)
	return n.Serve(cmd.Context(), l, chain.SocketOptions{
		Interval: interval, Report: report, Retry: 5 * time.Second,
		Held: func(err error) { fmt.Fprintf(cmd.ErrOrStderr(), "held: %v; trying again\n", err) },
	})
}

// printBlock prints a block in a line.
func (a *app) printBlock(cmd *cobra.Command, b *chain.Block) {
	out := cmd.OutOrStdout()
	if a.asJSON {
		json.NewEncoder(out).Encode(b)
		return
	}
	fmt.Fprintf(out, "%d %s", b.Height, b.AppHash)
	statuses := make(map[chain.Status]int)
	for _, o := range b.Inputs {
		statuses[o.Status]++
	}
	for _, s := range slices.Sorted(maps.Keys(statuses)) {
		fmt.Fprintf(out, "  %s %s", count(statuses[s], "input"), s)
	}
	if b.Cranks > 0 {
		fmt.Fprintf(out, "  %s", count(b.Cranks, "crank"))
	}
	if len(b.Upgraded) > 0 {
		fmt.Fprintf(out, "  upgraded %s", strings.Join(b.Upgraded, " "))
	}
	if len(b.Failed) > 0 {
		fmt.Fprintf(out, "  failed %s", strings.Join(b.Failed, " "))
	}
	if b.Tally.Queued > 0 {
		fmt.Fprintf(out, "  %s waiting", count(b.Tally.Queued, "delivery"))
	}
	if b.Queue > 0 {
		fmt.Fprintf(out, "  %s left", count(b.Queue, "event"))
	}
	fmt.Fprintln(out)
	for _, o := range b.Inputs {
		if o.Status != chain.Accepted && o.Status != chain.Duplicate {
			fmt.Fprintf(cmd.ErrOrStderr(), "  %s %d of %s is %s: %s\n", o.Type, o.Seq, o.Sender, o.Status, printable.Text(o.Reason))
		}
	}
}

func chainSend(a *app) *cobra.Command {
	var wait bool
	cmd := &cobra.Command{
		Use:   "send SOCKET [FILE]",
		Short: "Send inputs to a node, and print what became of them",
		Long: `Send sends lines of JSON, from a file or standard input, and prints a line for each when its block is committed; with --wait also for the result of each
message, as it comes. Bundles may be named as {"file":"PATH"}. What was sent before is answered as a duplicate, so that nothing is done twice.`,
		Example: `  enginery chain send demo.sock inputs.jsonl
  echo '{"sender":"alice","seq":1,"type":"deliver","vat":"mint","method":"report"}' | enginery chain send demo.sock --wait`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			in, dir := cmd.InOrStdin(), "."
			if len(args) == 2 && args[1] != "-" {
				file, err := os.Open(args[1])
				if err != nil {
					return usage(err)
				}
				defer file.Close()
				in, dir = file, filepath.Dir(args[1])
			}
			conn, err := net.Dial("unix", args[0])
			if err != nil {
				return &exit.Error{Err: fmt.Errorf("%w; is enginery chain run --socket running?", err), Code: exit.Unavailable}
			}
			defer conn.Close()
			stop := context.AfterFunc(cmd.Context(), func() { conn.Close() })
			defer stop()
			return send(cmd, conn, in, dir, wait)
		},
	}
	cmd.Flags().BoolVar(&wait, "wait", false, "wait for the results of messages")
	return cmd
}

func send(cmd *cobra.Command, conn net.Conn, in io.Reader, dir string, wait bool) error {
	type key struct {
		sender string
		seq    int64
	}
	var mu sync.Mutex
	sent, all := 0, false
	answered, refused, early := 0, 0, 0
	results := make(map[key]bool) // that are awaited
	complete := func() bool {
		return all && answered == sent && (!wait || len(results) == 0)
	}
	var problem error // of a line that was not sent, nor any after it
	go func() {
		s := bufio.NewScanner(in)
		s.Buffer(nil, chain.Line)
		line := 0
		err := error(nil)
		for err == nil && s.Scan() {
			if line++; len(bytes.TrimSpace(s.Bytes())) == 0 {
				continue
			}
			var input *chain.Input
			if input, err = chain.ReadInput(s.Bytes(), dir); err != nil {
				err = usage(fmt.Errorf("line %d: %w", line, err))
				break
			}
			if input.Type == chain.BlockType {
				continue // a node with a socket says itself where blocks end
			}
			mu.Lock()
			sent++
			mu.Unlock()
			_, err = conn.Write(append(slices.Clip([]byte(input.Raw)), '\n'))
		}
		if err == nil {
			err = s.Err()
		}
		mu.Lock()
		defer mu.Unlock()
		if all, problem = true, err; complete() {
			conn.Close() // and the loop below ends, too
		} else if c, ok := conn.(*net.UnixConn); ok {
			c.CloseWrite()
		}
	}()
	replies := json.NewDecoder(conn)
	for done := false; !done; {
		var r chain.Reply
		err := replies.Decode(&r)
		mu.Lock()
		switch {
		case err != nil:
		case r.Result != nil:
			delete(results, key{r.Result.Sender, r.Result.Seq})
		case r.Outcome != nil:
			answered++
			switch r.Status {
			case chain.Refused:
				refused++
			case chain.Early:
				early++
			case chain.Accepted:
				if r.Type == "deliver" {
					results[key{r.Sender, r.Seq}] = true
				}
			}
		}
		done = complete()
		mu.Unlock()
		if err == nil {
			json.NewEncoder(cmd.OutOrStdout()).Encode(r)
		} else if !done {
			return fmt.Errorf("the node has gone: %w; send the same again when it is back", err)
		}
	}
	if problem != nil {
		return problem
	}
	var problems []string
	if refused > 0 {
		problems = append(problems, fmt.Sprintf("%d refused", refused))
	}
	if early > 0 {
		problems = append(problems, fmt.Sprintf("%d early, for which a lower seq of the sender must come first: send that, and then the same again", early))
	}
	if problems != nil {
		return fmt.Errorf("of %s: %s", count(answered, "input"), strings.Join(problems, "; "))
	}
	return nil
}

func chainResults(a *app) *cobra.Command {
	var after int64
	cmd := &cobra.Command{
		Use:               "results DIR SENDER",
		Short:             "Print the results of a sender's messages that it has not acknowledged",
		Example:           "  enginery chain results demo alice --after 12",
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: completeChain,
		RunE: ofChain(func(cmd *cobra.Command, s *swingstore.Store, args []string) error {
			for {
				results, err := chain.ReadResults(cmd.Context(), &s.Reader, args[1], after, 1000)
				if err != nil || len(results) == 0 {
					return err
				}
				for _, r := range results {
					if a.asJSON {
						json.NewEncoder(cmd.OutOrStdout()).Encode(r)
						after = r.Seq
						continue
					}
					kind := "fulfilled"
					if r.Rejected {
						kind = "rejected"
					}
					fields := append([]string{strconv.FormatInt(r.Seq, 10), "block", strconv.FormatInt(r.Height, 10), kind, printable.Text(r.Data.Body)}, r.Data.Slots...)
					fmt.Fprintln(cmd.OutOrStdout(), strings.Join(fields, " "))
					after = r.Seq
				}
			}
		}),
	}
	cmd.Flags().Int64Var(&after, "after", 0, "only of messages after this `seq`")
	return cmd
}

func chainLog(a *app) *cobra.Command {
	var from, to int64
	var inputs, events bool
	cmd := &cobra.Command{
		Use:   "log DIR",
		Short: "Print blocks, their inputs or the events of upgrades",
		Long: `Log prints a line for each block whose record was kept. With --inputs it prints what enginery chain run --input takes, so that another node can make the same blocks; with
--events the events of the upgrade controller, lines of JSON.`,
		Example: `  enginery chain log demo --from 100
  enginery chain log demo --inputs > demo.jsonl
  enginery chain log demo --events | grep upgrade-failed`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeChain,
		RunE: ofChain(func(cmd *cobra.Command, s *swingstore.Store, args []string) error {
			ctx, r, out := cmd.Context(), &s.Reader, cmd.OutOrStdout()
			first, last, err := chain.Kept(ctx, r)
			if err != nil {
				return err
			}
			if to == 0 || to > last {
				to = last
			}
			if inputs && from < first {
				return fmt.Errorf("the inputs of blocks before %d were not kept (enginery chain run --keep), and another node needs all; --from %d prints the others", first, first)
			}
			e := json.NewEncoder(out)
			e.SetEscapeHTML(false)
			for height := max(first, from); height <= to; height++ {
				switch {
				case inputs:
					lines, err := chain.Inputs(ctx, r, height)
					if err != nil {
						return err
					}
					for _, line := range lines {
						fmt.Fprintf(out, "%s\n", line)
					}
					fmt.Fprintf(out, "{\"type\":\"block\",\"height\":%d}\n", height)
				case events:
					all, err := chain.Events(ctx, r, height)
					if err != nil {
						return err
					}
					for _, event := range all {
						e.Encode(event)
					}
				default:
					b, err := chain.ReadBlock(ctx, r, height)
					if err != nil {
						return err
					}
					a.printBlock(cmd, b)
				}
			}
			return nil
		}),
	}
	f := cmd.Flags()
	f.Int64Var(&from, "from", 1, "first `height`; earlier than what was kept is what was kept")
	f.Int64Var(&to, "to", 0, "last `height`; 0 is that of the last block")
	f.BoolVar(&inputs, "inputs", false, "print the inputs")
	f.BoolVar(&events, "events", false, "print the events")
	cmd.MarkFlagsMutuallyExclusive("inputs", "events")
	return cmd
}

func chainServe(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve DIR ADDR",
		Short: "Show a chain in a browser, live",
		Long: `Serve shows versions, vats by state, the rollout block by block, queues and failures. ADDR is HOST:PORT; port 0 takes any that is free. Whoever can
reach the address can look, and nobody can change anything. It ends with Ctrl-C.`,
		Example:           "  enginery chain serve demo localhost:8080",
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: completeChain,
		RunE: ofChain(func(cmd *cobra.Command, s *swingstore.Store, args []string) error {
			l, err := net.Listen("tcp", args[1])
			if err != nil {
				return fmt.Errorf("serving %s: %w", args[0], err)
			}
			started := struct {
				Address string `json:"address"`
			}{"http://" + l.Addr().String()}
			if err := a.print(cmd, started, func(out io.Writer) error {
				_, err := fmt.Fprintf(out, "showing %s at %s\n", args[0], started.Address)
				return err
			}); err != nil {
				return err
			}
			server := &http.Server{Handler: page.Handler(s), ReadHeaderTimeout: 10 * time.Second, BaseContext: func(net.Listener) context.Context { return cmd.Context() }}
			stop := context.AfterFunc(cmd.Context(), func() { server.Close() })
			defer stop()
			if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				return err
			}
			return nil
		}),
	}
	return cmd
}

// ofChain makes a command's function out of one that reads a chain, whose folder is the first argument.
func ofChain(run func(cmd *cobra.Command, s *swingstore.Store, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		s, err := swingstore.Open(args[0])
		if errors.Is(err, os.ErrNotExist) {
			return usage(fmt.Errorf("%s is no chain: %w; enginery chain run makes one", args[0], err))
		} else if err != nil {
			return err
		}
		defer s.Close()
		return run(cmd, s, args)
	}
}

func completeChain(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return nil, cobra.ShellCompDirectiveFilterDirs
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}
