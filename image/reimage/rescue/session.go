package rescue

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"github.com/creack/pty"
	"golang.org/x/crypto/ssh"

	"reassure/image/command"
)

// session is one program, or one shell, of a client.
type session struct {
	channel ssh.Channel
	shell   string

	term string   // what the client's terminal is
	ours *os.File // our side of the terminal; nil is none
	tty  *os.File // the program's side
}

// serve does what the client asks until it goes, or what it has started ends.
func (x *session) serve(ctx context.Context, requests <-chan *ssh.Request) {
	ctx, cancel := context.WithCancel(ctx)
	var program sync.WaitGroup
	started := false
	for r := range requests {
		ok := false
		switch r.Type {
		case "pty-req":
			ok = !started && x.openTerminal(r.Payload) == nil
		case "window-change":
			ok = x.resize(r.Payload) == nil
		case "shell", "exec":
			args, err := x.args(r)
			if started || err != nil {
				break
			}
			started, ok = true, true
			program.Go(func() { x.run(ctx, args) })
		}
		if r.WantReply {
			_ = r.Reply(ok, nil) // to one that has gone
		}
	}
	cancel()
	if x.ours != nil {
		x.ours.Close() // the kernel hangs up on whoever is at the terminal
	}
	program.Wait()
	if x.tty != nil {
		x.tty.Close()
	}
	x.channel.Close()
}

// args is what a request for a program has the shell do.
func (x *session) args(r *ssh.Request) ([]string, error) {
	if r.Type == "shell" {
		return []string{x.shell}, nil
	}
	var exec struct{ Command string }
	if err := ssh.Unmarshal(r.Payload, &exec); err != nil {
		return nil, err
	}
	if strings.ContainsRune(exec.Command, 0) {
		return nil, errors.New("a command with a zero byte in it")
	}
	return []string{x.shell, "-c", exec.Command}, nil
}

// openTerminal gives the session a terminal of its own (RFC 4254, 6.2).
func (x *session) openTerminal(payload []byte) error {
	var asked struct {
		Term                         string
		Columns, Rows, Width, Height uint32
		Modes                        string
	}
	if err := ssh.Unmarshal(payload, &asked); err != nil {
		return err
	}
	if x.ours != nil {
		return errors.New("it has a terminal")
	}
	var err error
	if x.ours, x.tty, err = pty.Open(); err != nil {
		return err
	}
	x.term = asked.Term
	return x.setSize(asked.Columns, asked.Rows)
}

// resize is what a client asks for whose window has got another size (6.7).
func (x *session) resize(payload []byte) error {
	var asked struct{ Columns, Rows, Width, Height uint32 }
	if err := ssh.Unmarshal(payload, &asked); err != nil {
		return err
	}
	if x.ours == nil {
		return errors.New("it has no terminal")
	}
	return x.setSize(asked.Columns, asked.Rows)
}

func (x *session) setSize(columns, rows uint32) error {
	const most = 1<<16 - 1
	return pty.Setsize(x.ours, &pty.Winsize{Cols: uint16(min(columns, most)), Rows: uint16(min(rows, most))})
}

// run runs a program to its end, and tells the client how that was.
func (x *session) run(ctx context.Context, args []string) {
	c := command.Command{Args: args, Env: append(os.Environ(), "USER="+User, "HOME=/root", fmt.Sprintf("%s=%d", variable, os.Getpid()))}
	if x.term != "" && !strings.ContainsRune(x.term, 0) {
		c.Env = append(c.Env, "TERM="+x.term)
	}
	var err error
	if x.tty != nil {
		c.TTY = x.tty
		err = x.atTerminal(ctx, c)
	} else {
		err = x.byPipe(ctx, c)
	}
	status, said := exitStatus(err)
	if said != "" {
		fmt.Fprintf(x.channel.Stderr(), "%s\r\n", said)
	}
	_, _ = x.channel.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{status}))
	x.channel.Close()
}

// atTerminal joins the client and the program's terminal.
func (x *session) atTerminal(ctx context.Context, c command.Command) error {
	go func() { _, _ = io.Copy(x.ours, x.channel) }()
	shown := make(chan struct{})
	go func() {
		_, _ = io.Copy(x.channel, x.ours) // it ends with EIO when nobody holds the other side any more
		close(shown)
	}()
	err := c.Run(ctx)
	x.tty.Close()
	select {
	case <-shown:
	case <-ctx.Done():
	}
	return err
}

// byPipe joins the client and a program without a terminal. Its input is a pipe and not a
// reader, as the end of a program would wait for the next byte of that.
func (x *session) byPipe(ctx context.Context, c command.Command) error {
	input, pipe, err := os.Pipe()
	if err != nil {
		return err
	}
	defer input.Close()
	go func() {
		_, _ = io.Copy(pipe, x.channel)
		pipe.Close()
	}()
	c.Stdin, c.Stdout, c.Stderr = input, x.channel, x.channel.Stderr()
	return c.Run(ctx)
}

// exitStatus is what a client is told of how a program ended, and what it has not said
// itself.
func exitStatus(err error) (status uint32, said string) {
	if err == nil {
		return 0, ""
	}
	var ended interface{ ExitCode() int }
	if errors.As(err, &ended) {
		if code := ended.ExitCode(); code >= 0 {
			return uint32(code), ""
		}
		return 255, "" // by a signal
	}
	return 127, err.Error()
}
