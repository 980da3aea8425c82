package main

import (
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"reassure/image/serve"
	"reassure/image/spec"
)

func (a *app) serveCommand() *cobra.Command {
	config := "lab.yaml"
	c := &cobra.Command{
		Use:   "serve [--config lab.yaml]",
		Short: "Run the boot server: DHCP, TFTP, HTTP, decisions, web page",
		Long: `serve is everything that a lab's PCs need to boot and be reimaged, in one process.
It reads lab.yaml once and the site again whenever one of its files changes, on
SIGHUP, and on "reassure reload". An edit with mistakes changes nothing.

Nothing is reimaged because a file changed: "reassure rollout" says what is, unless
a profile has rollout: auto.`,
		Example: `  reassure serve --config lab.yaml
  reassure template systemd/reassure.service >/etc/systemd/system/reassure.service`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			o := serve.Options{Log: a.serverLog(), Version: spec.Version}
			var err error
			if o.Config, err = serve.Load(config); err != nil {
				return err
			}
			if o.Signer, err = a.signer(o.Config.Key); err != nil {
				return err
			}
			hangup := make(chan os.Signal, 1)
			signal.Notify(hangup, syscall.SIGHUP)
			defer signal.Stop(hangup)
			o.Reload = hangup
			return serve.Run(c.Context(), o)
		},
	}
	c.Flags().StringVarP(&config, "config", "c", config, "the server's configuration `file`")
	return c
}

// serverLog tells what is done, on standard error: each decision is worth a line.
func (a *app) serverLog() *slog.Logger {
	level := slog.LevelInfo
	if a.verbose {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: level}))
}
